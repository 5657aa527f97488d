"""Classify failures of actor calls and decide how to handle them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ray import exceptions as ray_errors

from fedsim.core.errors import ClientError, FedsimError, PluginError, ResourceError
from fedsim.executors.base import StateLost
from fedsim.executors.ray.shipping import UNLOADED

SYSTEM_ERRORS = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,
)
"""Failures of the cluster, not of the code it ran."""

FailureKind = Literal["lost", "timeout"]
"""Why a call failed without raising: its actor was lost each time, or it missed its deadline."""


@dataclass(frozen=True)
class FailurePolicy:
    """How to handle a group whose actor is lost or that times out: ``client.on_failure``."""

    drop: bool = False
    """Find the client at fault and continue without it."""
    retries: int | None = None
    """Retries of a group before the run stops. None: as often as ``ray.max_replacements`` allows if its
    actor is lost, never if it times out."""

    @classmethod
    def of(cls, on_failure: str) -> FailurePolicy:
        """Read ``raise``, ``drop`` or ``retry:N``."""
        if on_failure.startswith("retry:"):
            return cls(retries=int(on_failure.removeprefix("retry:")))
        return cls(drop=on_failure == "drop")

    def sends_again(self, kind: FailureKind, failures: int, max_replacements: int) -> bool:
        """Return whether a call that cannot be dropped is retried after its n-th failure."""
        if self.retries is None:
            return kind == "lost" and failures <= max_replacements
        return failures <= self.retries


def inputs_lost(error: ray_errors.RayTaskError) -> bool:
    """Return whether a call failed because one of its input objects was lost, not by its own doing."""
    return isinstance(error, SYSTEM_ERRORS) or isinstance(getattr(error, "cause", None), SYSTEM_ERRORS)


def task_error(what: str, error: ray_errors.RayTaskError) -> FedsimError | StateLost:
    """Return the FedsimError that a task raised, StateLost if its input was lost, or a ClientError with the traceback."""
    if inputs_lost(error):
        return StateLost(f"{what} needed an object that was lost with its node")
    cause = getattr(error, "cause", None)
    if isinstance(cause, ray_errors.RaySystemError) and (unloaded := re.search(UNLOADED, str(cause))) is not None:
        return PluginError(unloaded[0])  # while Ray read the arguments
    return cause if isinstance(cause, FedsimError) else ClientError(f"{what} failed:\n{error}")


def ray_error(what: str, error: ray_errors.RayError) -> ResourceError:
    """Return Ray's own error as a FedsimError, where no actor and no object is to blame."""
    return ResourceError(f"{what}: {type(error).__name__}: {first_line(error)}")


def out_of_memory(error: Exception) -> bool:
    """Return whether Ray killed an actor because its node ran out of memory, whoever used it."""
    return isinstance(error, ray_errors.OutOfMemoryError)


def node_is_lost(error: Exception) -> bool:
    """Return whether an actor was lost with its node."""
    return isinstance(error, ray_errors.ActorUnavailableError | ray_errors.NodeDiedError) or "its node" in reason(error)


def reason(error: Exception) -> str:
    """Describe in a few words how an actor was lost."""
    if out_of_memory(error):
        return "Ray killed its process because its node ran out of memory"
    if isinstance(error, ray_errors.ActorUnavailableError | ray_errors.NodeDiedError):
        return "its node does not answer"
    if isinstance(error, ray_errors.ActorDiedError) and not error.actor_init_failed:
        return "its node is gone" if "node" in first_line(error).lower() else "its process died"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
