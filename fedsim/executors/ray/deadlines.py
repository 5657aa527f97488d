"""Waiting for Ray with a deadline, open to the user's interrupt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ResourceError
from fedsim.executors.ray.failures import SYSTEM_ERRORS, ray_error, task_error

POLL_SECONDS = 0.5
"""Between two looks at whether the user has interrupted the run."""
START_KEY = "ray.start_timeout_seconds"
"""Key of the deadline for whatever starts."""


class OverdueError(ResourceError):
    """Something did not come by its deadline."""


def wait_for(
    refs: Sequence[ray.ObjectRef],
    timeout_seconds: float,
    what: str,
    key: str,
    check_interrupt: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Return the values of all of ``refs``.

    Parameters
    ----------
    what
        What is waited for, in messages.
    key
        The key of the config that sets the deadline.

    Raises
    ------
    OverdueError
        If they have not all come by the deadline.
    FedsimError, StateLost
        What a task raised; see :func:`fedsim.executors.ray.failures.task_error`.
    ray.exceptions.RayError
        What the cluster did; see :data:`fedsim.executors.ray.failures.SYSTEM_ERRORS`.
    """
    deadline = time.monotonic() + timeout_seconds
    pending = list(refs)
    while pending:
        ready, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
        check_interrupt()
        _get(ready, what)
        if pending and time.monotonic() > deadline:
            raise OverdueError(f"waited {timeout_seconds:g} s ({key}) for {what}; {len(pending)} are missing")
    values: list[Any] = _get(refs, what)
    return values


def _get(refs: Sequence[ray.ObjectRef], what: str) -> Any:
    try:
        return ray.get(list(refs))
    except ray_errors.RayTaskError as error:
        raise task_error(what, error) from error
    except SYSTEM_ERRORS:
        raise
    except ray_errors.RayError as error:
        raise ray_error(what, error) from error
