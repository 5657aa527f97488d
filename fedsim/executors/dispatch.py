"""Calls on a fixed set of actors: who gets which, until when, and what happens when an actor is lost.

An actor always has a call waiting behind the one that it works on, so it never waits for the driver. Calls of an actor run in
the order in which they were sent; only the first of them is waited for, and only its time counts against the deadline.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ClientError, FedsimError, ResourceError
from fedsim.executors.config import RayConfig

POLL_SECONDS = 0.5
"""Between two looks at whether the user has interrupted the run."""
SYSTEM_ERRORS = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,
)
"""The cluster's failures, not those of the code that it ran."""
_DEPTH = 2
"""Calls that an actor has at most: one at work, one behind it."""


@dataclass(frozen=True)
class Call:
    """One actor call: the unit that is sent again when its actor is lost."""

    index: int
    method: str
    arguments: tuple[Any, ...]
    num_returns: int = 1
    slot: int | None = None
    """The actor that has to run it, or None for any."""
    what: str = ""
    """For messages, rounds counted from 1: ``round 3, group 1``."""


@dataclass(frozen=True)
class Done:
    """A call that has returned."""

    index: int
    value: Any
    """Of the first return."""
    refs: list[ray.ObjectRef]
    """All returns."""


@dataclass(frozen=True)
class _Flight:
    call: Call
    refs: list[ray.ObjectRef]
    started: float
    """When the actor could begin with it."""


class Dispatcher:
    """Runs calls on actors and replaces actors that are lost.

    Parameters
    ----------
    actors
        By slot; an actor that is lost is replaced in it.
    successor
        Creates an actor that takes the place of a lost one.
    check_interrupt
        Raises when the user has interrupted the run.
    note
        Called with sentences for the user.
    """

    def __init__(
        self,
        config: RayConfig,
        actors: dict[int, Any],
        successor: Callable[[], Any],
        check_interrupt: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._config = config
        self._actors = actors
        self._successor = successor
        self._check_interrupt = check_interrupt
        self._note = note
        self.replaced = 0
        """Actors lost to the system and replaced so far."""

    def run(self, calls: Sequence[Call]) -> Iterator[Done]:
        """Run calls; yield each as it is done, in any order.

        Raises
        ------
        ResourceError
            If a call takes longer than ``ray.group_timeout_seconds``, or more than ``ray.max_replacements`` actors are lost.
        ClientError, FedsimError
            What a call raised.
        """
        queues = _Queues(self._actors, calls)
        replaced_before = self.replaced
        queues.fill(self._actors)
        while heads := queues.heads():
            ready, _ = ray.wait(list(heads), num_returns=1, timeout=POLL_SECONDS)
            if ready:  # and whatever else is: a look at many costs hardly more than at one
                ready, _ = ray.wait(list(heads), num_returns=len(heads), timeout=0)
            self._check_interrupt()
            for ref in ready:
                slot = heads[ref]
                try:
                    value = ray.get(ref)
                except SYSTEM_ERRORS as error:
                    self._replace(slot, queues.head(slot).call, error, self.replaced - replaced_before)
                    queues.send_again(slot, self._actors[slot])
                except ray_errors.RayTaskError as error:
                    raise task_error(queues.head(slot).call.what, error) from error
                else:
                    flight = queues.pop(slot)
                    queues.fill({slot: self._actors[slot]})
                    yield Done(flight.call.index, value, flight.refs)
            self._check_deadlines(queues)

    def _replace(self, slot: int, call: Call, error: Exception, replaced_now: int) -> None:
        if replaced_now >= self._config.max_replacements:
            raise ResourceError(
                f"{call.what}: an actor was lost ({first_line(error)}) after {replaced_now} replacements in one go; see "
                "ray.max_replacements, and memory if the system killed them"
            ) from error
        self.replaced += 1
        self._note(f"warning: actor {slot} was lost in {call.what} ({first_line(error)}); sent again")
        self._actors[slot] = self._successor()

    def _check_deadlines(self, queues: _Queues) -> None:
        limit = self._config.group_timeout_seconds
        for slot in queues.heads().values():
            flight = queues.head(slot)
            if time.monotonic() - flight.started > limit:
                raise ResourceError(f"{flight.call.what} took longer than ray.group_timeout_seconds={limit:g}")


class _Queues:
    """Calls that wait for an actor, and those that each actor has, in the order in which it runs them."""

    def __init__(self, slots: Sequence[int] | dict[int, Any], calls: Sequence[Call]) -> None:
        self._flights: dict[int, deque[_Flight]] = {slot: deque() for slot in slots}
        self._free = deque(call for call in calls if call.slot is None)
        self._bound: dict[int, deque[Call]] = {}
        for call in calls:
            if call.slot is not None:
                self._bound.setdefault(call.slot, deque()).append(call)

    def heads(self) -> dict[ray.ObjectRef, int]:
        """Return the first return of the call that each busy actor works on, with its slot."""
        return {flights[0].refs[0]: slot for slot, flights in self._flights.items() if flights}

    def head(self, slot: int) -> _Flight:
        """Return the call that an actor works on."""
        return self._flights[slot][0]

    def pop(self, slot: int) -> _Flight:
        """Take off the call that an actor has done; the one behind it has its turn from now."""
        flights = self._flights[slot]
        done = flights.popleft()
        if flights:
            flights[0] = replace(flights[0], started=time.monotonic())
        return done

    def fill(self, actors: dict[int, Any]) -> None:
        """Give each of the actors its next calls; all get a first one before any gets a second."""
        for depth in range(_DEPTH):
            for slot, actor in actors.items():
                if len(self._flights[slot]) <= depth and (call := self._next(slot, depth)) is not None:
                    self._send(slot, actor, call)

    def send_again(self, slot: int, actor: Any) -> None:
        """Give all calls of a lost actor to its successor."""
        lost = list(self._flights[slot])
        self._flights[slot].clear()
        for flight in lost:
            self._send(slot, actor, flight.call)

    def _next(self, slot: int, depth: int) -> Call | None:
        bound = self._bound.get(slot)
        if bound:
            return bound.popleft()
        # The last calls wait for whoever is idle first: behind a long call they would keep the others waiting.
        if len(self._free) > (len(self._flights) if depth else 0):
            return self._free.popleft()
        return None

    def _send(self, slot: int, actor: Any, call: Call) -> None:
        refs = getattr(actor, call.method).options(num_returns=call.num_returns).remote(*call.arguments)
        refs = refs if isinstance(refs, list) else [refs]
        self._flights[slot].append(_Flight(call, refs, time.monotonic()))


def task_error(what: str, error: ray_errors.RayTaskError) -> FedsimError:
    """Return the error of ours that a task raised, or a ClientError with the original traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, FedsimError) else ClientError(f"{what} failed:\n{error}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
