"""Wait for Ray objects with a deadline; the user can interrupt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ResourceError
from fedsim.executors.ray.failures import SYSTEM_ERRORS, ray_error, task_error

POLL_SECONDS = 0.5
"""Interval at which user interrupts are checked."""
START_KEY = "ray.start_timeout_seconds"
"""Config key of the start-up deadline."""


class OverdueError(ResourceError):
    """A deadline passed."""


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
        Name of what is waited for, for messages.
    key
        Config key that sets the deadline.

    Raises
    ------
    OverdueError
        If any is missing at the deadline.
    FedsimError, StateLost
        If a task raised; see :func:`fedsim.executors.ray.failures.task_error`.
    ray.exceptions.RayError
        If the cluster failed; see :data:`fedsim.executors.ray.failures.SYSTEM_ERRORS`.
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
