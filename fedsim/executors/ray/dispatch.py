"""Dispatch calls to a pool of actors, with deadlines, retries, and replacement of lost actors.

Every call ends in one of three ways: it succeeds, it fails for good and its clients are left out of the round, or the run stops
with an error that names it. Calls are pure functions of their arguments, so a retry gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ResourceError
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.deadlines import POLL_SECONDS
from fedsim.executors.ray.failures import (
    SYSTEM_ERRORS,
    FailureKind,
    FailurePolicy,
    node_is_lost,
    out_of_memory,
    ray_error,
    reason,
    task_error,
)
from fedsim.executors.ray.pool import ActorPool
from fedsim.executors.ray.queues import Call, Item, Queues

_PATIENCE_SECONDS = 30.0
"""Time limit for actors still busy with abandoned calls."""


@dataclass(frozen=True)
class Done:
    """A finished call."""

    call: Call
    value: Any
    """Value of the first return."""
    refs: list[ray.ObjectRef]
    """References to all returns."""
    node: str
    """Node it ran on."""


@dataclass(frozen=True)
class Failed:
    """A call that failed for good; its clients are left out of the round."""

    call: Call
    kind: FailureKind
    message: str
    at_fault: bool = True
    """Whether its clients are known to be at fault; not so if the whole round timed out."""


class Dispatcher:
    """Runs calls on actors and replaces lost actors.

    Parameters
    ----------
    policy
        How to handle a call whose actor is lost or that times out.
    check_interrupt
        Raises when the user has interrupted the run.
    note
        Called with messages for the user.
    """

    def __init__(
        self,
        config: RayConfig,
        pool: ActorPool,
        policy: FailurePolicy,
        check_interrupt: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._config = config
        self._pool = pool
        self._policy = policy
        self._check_interrupt = check_interrupt
        self._note = note
        self.resent_clients = 0
        """Number of times a client's call was retried so far."""
        self._lost_now = self._lost_together_now = 0
        self._under_way: Queues | None = None
        """Calls of the current or an abandoned run of :meth:`run`."""

    def run(self, calls: Sequence[Call], timeout_seconds: float | None = None) -> Iterator[Done | Failed]:
        """Run calls; yield each as it finishes, in any order.

        Parameters
        ----------
        timeout_seconds
            Time limit for all training calls together: ``ray.round_timeout_seconds``.

        Raises
        ------
        ResourceError
            If a call or all of them time out, or more actors are lost than may be replaced.
        StateLost
            If an object that a call needs was lost with its node.
        ClientError, FedsimError
            If a call raised.
        """
        self.settle()
        queues = Queues(calls, self._pool.nodes)
        self._lost_now = self._lost_together_now = 0
        self._under_way = queues
        yield from self._run(queues, timeout_seconds)
        self._under_way = None

    def _run(self, queues: Queues, timeout_seconds: float | None) -> Iterator[Done | Failed]:
        deadline = None
        queues.fill(self._pool.ready)
        while queues.unfinished:
            if not (self._pool.ready or self._pool.starting):
                raise ResourceError("no actor is left, and none is starting; continue with --resume")
            heads = queues.heads()
            arrived = _arrived([*heads, *self._pool.starting])
            self._check_interrupt()
            for ref in arrived:
                if ref in heads:
                    yield from self._returned(queues, heads[ref], ref)
            self._pool.admit(arrived)
            self._pool.expire()
            yield from self._overdue(queues)
            if timeout_seconds is not None and self._pool.ready:
                # While no actor is ready, none can be too slow.
                deadline = deadline or time.monotonic() + timeout_seconds
                if time.monotonic() > deadline:
                    yield from self._cut_off(queues, timeout_seconds)
            queues.release(self._pool.slots)
            queues.fill(self._pool.ready)

    def settle(self) -> None:
        """Wait briefly for actors still busy with abandoned calls, then replace them."""
        left = {} if self._under_way is None else self._under_way.last_calls()
        self._under_way = None
        deadline = time.monotonic() + min(_PATIENCE_SECONDS, self._config.group_timeout_seconds)
        while left:
            for ref in _arrived(list(left)):
                slot = left.pop(ref)
                try:
                    ray.get(ref)
                except ray_errors.RayTaskError:
                    continue  # abandoned: its caller already knows why
                except SYSTEM_ERRORS as error:
                    if slot in self._pool.ready:
                        self._replace(slot, "between two rounds", error)
            self._check_interrupt()
            if time.monotonic() > deadline:
                for slot in set(left.values()) & set(self._pool.ready):
                    self._pool.replace(slot)
                return

    # -- results of a call -------------------------------------------------------------------------------------------

    def _returned(self, queues: Queues, slot: int, ref: ray.ObjectRef) -> Iterator[Done | Failed]:
        flight = queues.head(slot)
        item = flight.item
        try:
            value = ray.get(ref)
        except ray_errors.RayTaskError as error:
            raise task_error(item.call.what, error) from error
        except SYSTEM_ERRORS as error:
            queues.put_back(queues.take(slot)[1:])
            self._replace(slot, f"{'before' if flight.probes else 'in'} {item.call.what}", error)
            if flight.probes:
                queues.put_back([item])
                return
            last = item.last or out_of_memory(error)
            message = f"its actor was lost ({reason(error)})"
            yield from self._came_to_nothing(queues, replace(item, last=last), "lost", message, again=last != item.last)
        except ray_errors.RayError as error:
            raise ray_error(item.call.what, error) from error
        else:
            if flight.probes:
                queues.send_probed(slot, self._pool.ready[slot])
                return
            flight, node = queues.pop(slot), self._pool.nodes[slot]
            queues.fill({slot: self._pool.ready[slot]})
            yield Done(item.call, value, flight.refs, node)

    def _came_to_nothing(
        self, queues: Queues, item: Item, kind: FailureKind, message: str, again: bool = False
    ) -> Iterator[Failed]:
        """Retry a call, send its clients one by one, or give it up, as the policy decides.

        Parameters
        ----------
        again
            Retry it: it is not yet known whether the call is at fault.
        """
        call, failures = item.call, item.failures + 1
        if not (self._policy.drop and call.clients):
            if not self._policy.sends_again(kind, failures, self._config.max_replacements):
                tries = "" if failures == 1 else f" (tried {failures} times)"
                raise ResourceError(f"{call.what}{tries}: {message}")
            self._send_again(queues, [replace(item, failures=failures)])
        elif again or (kind == "lost" and failures == 1 and not item.alone):
            self._send_again(queues, [replace(item, failures=failures)])
        elif call.split is not None:
            self._note(f"warning: {call.what}: {message}; its clients are retried one by one to find the one at fault")
            self._send_again(queues, [Item(part, alone=True, last=item.last) for part in call.split()])
        else:
            yield Failed(call, kind, message)

    def _send_again(self, queues: Queues, items: Sequence[Item]) -> None:
        self.resent_clients += sum(len(item.call.clients) for item in items)
        queues.put_back(items)

    def _replace(self, slot: int, when: str, error: Exception) -> None:
        # A node that fails or runs out of memory takes several actors at once; that counts as one failure.
        together = node_is_lost(error) or out_of_memory(error)
        limit = self._config.max_replacements * (max(1, len(self._pool)) if together else 1)
        lost = self._lost_together_now if together else self._lost_now
        if lost >= limit:
            raise ResourceError(
                f"{when}: an actor was lost ({reason(error)}) after {lost} replacements in one round; see "
                "ray.max_replacements, and memory if the system killed them"
            ) from error
        self._lost_together_now += together
        self._lost_now += not together
        self._note(f"warning: actor {slot} was lost {when} ({reason(error)}); it is replaced")
        self._pool.replace(slot)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _overdue(self, queues: Queues) -> Iterator[Failed]:
        limit = self._config.group_timeout_seconds
        for slot in list(queues.heads().values()):
            flight = queues.head(slot)
            if time.monotonic() - flight.started <= limit or _is_there(flight.refs[0]):
                continue
            if flight.probes:
                queues.put_back(queues.take(slot))
                self._pool.replace(slot)
                continue
            yield from self._stopped(queues, slot, f"took longer than ray.group_timeout_seconds={limit:g}")

    def _stopped(self, queues: Queues, slot: int, message: str) -> Iterator[Failed]:
        """Kill an actor that timed out."""
        head, *behind = queues.take(slot)
        queues.put_back(behind)
        self._pool.replace(slot)
        yield from self._came_to_nothing(queues, head, "timeout", message)

    def _cut_off(self, queues: Queues, limit: float) -> Iterator[Failed]:
        """End a round that timed out: unfinished training calls fail."""
        message = f"not done within ray.round_timeout_seconds={limit:g}"
        missing = queues.take_clients()
        for slot in queues.slots_with_clients():
            if _is_there(queues.head(slot).refs[0]):
                continue  # finished in time; handled in a moment
            items = queues.take(slot)
            self._pool.replace(slot)
            missing += [item for item in items if item.call.clients]
            queues.put_back([item for item in items if not item.call.clients])
        if missing and not self._policy.drop:
            first = min(missing, key=lambda item: item.call.index).call.what
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise ResourceError(f"{first}{others}: {message}")
        for item in missing:
            yield Failed(item.call, "timeout", message, at_fault=False)


def _arrived(refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Wait a moment for any of ``refs``; return all that are ready."""
    if not refs:
        time.sleep(POLL_SECONDS)
        return []
    ready, _ = ray.wait(refs, num_returns=1, timeout=POLL_SECONDS)
    if not ready:
        return []
    # Collect all others that are ready: checking many costs hardly more than checking one.
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0]


def _is_there(ref: ray.ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])
