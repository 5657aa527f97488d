"""Queues of calls: those waiting for an actor, and those each actor holds, in execution order.

An actor always has a call queued behind the one it is running, so it never waits for the driver. An actor runs its calls in
the order in which they were sent; only the first is waited for, and only its time counts against the deadline.

If a node runs out of memory, Ray kills actors until enough is free, the youngest first, whoever used it. Calls that were
lost that way run last, each alone: they then have all the memory, and one that is lost again was at fault.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

_LAST = sys.maxsize
"""Stands for the block of calls without one: evaluations, which come after all others."""
_DEPTH = 2
"""Most calls an actor holds: one running, one queued."""


@dataclass(frozen=True)
class Call:
    """One actor call: the unit that is retried when its actor is lost."""

    index: int
    method: str
    arguments: tuple[Any, ...]
    num_returns: int = 1
    slot: int | None = None
    """Actor that must run it; None for any."""
    what: str = ""
    """Name for messages, rounds counted from 1: ``round 3, group 1``."""
    clients: tuple[int, ...] = ()
    """Clients that train in it; they may be left out of the round if it fails."""
    round: int = 0
    """Round whose state they train from."""
    block: int | None = None
    """Block it belongs to: its calls go to one node, where their sums are added, unless that would keep an actor waiting."""
    split: Callable[[], list[Call]] | None = None
    """Makes one call per client, to find the one at fault; None if there is only one client."""
    part: int = 0
    """Index among the calls that a call was split into."""
    parts: int = 1
    """Number of calls that it was split into."""


@dataclass(frozen=True)
class Item:
    """A pending call and its history."""

    call: Call
    failures: int = 0
    """Times that its actor was lost or that it timed out."""
    alone: bool = False
    """Whether it was split off a failed call."""
    last: bool = False
    """Whether its actor was killed for lack of memory: it then runs alone."""


@dataclass(frozen=True)
class Flight:
    """A call sent to an actor."""

    item: Item
    refs: list[ray.ObjectRef]
    started: float
    """When the actor could start it."""
    probes: bool = False
    """Whether it is only a liveness probe, sent before a suspected call."""


class Queues:
    """All calls of one round.

    Parameters
    ----------
    nodes
        Node of each slot; read again whenever a call is assigned.
    """

    def __init__(self, calls: Iterable[Call], nodes: Mapping[int, str]) -> None:
        self._nodes = nodes
        self._flights: dict[int, deque[Flight]] = {}
        self._free: dict[int, deque[Item]] = {}
        """Calls that any actor may run, by block; only blocks that have some, so that many blocks cost no search."""
        self._bound: dict[int, deque[Item]] = {}
        """Calls bound to one actor, by slot."""
        self._last: deque[Item] = deque()
        """Calls that run alone."""
        self._blocks: dict[str, int] = {}
        """Block that each node currently takes calls from."""
        for call in calls:
            self._queue(call).append(Item(call))

    @property
    def unfinished(self) -> bool:
        """Whether any call is unfinished."""
        return bool(self._last) or self._others_unfinished

    @property
    def _others_unfinished(self) -> bool:
        return any(any(queues.values()) for queues in (self._free, self._flights, self._bound))

    def heads(self) -> dict[ray.ObjectRef, int]:
        """Return the first return of the call that each busy actor is running, with its slot."""
        return {flights[0].refs[0]: slot for slot, flights in self._flights.items() if flights}

    def head(self, slot: int) -> Flight:
        """Return the call that an actor is running."""
        return self._flights[slot][0]

    def last_calls(self) -> dict[ray.ObjectRef, int]:
        """Return the first return of the last call queued on each busy actor, with its slot."""
        return {flights[-1].refs[0]: slot for slot, flights in self._flights.items() if flights}

    def pop(self, slot: int) -> Flight:
        """Remove the call that an actor finished; the next one starts now."""
        flights = self._flights[slot]
        done = flights.popleft()
        if flights:
            flights[0] = replace(flights[0], started=time.monotonic())
        return done

    def take(self, slot: int) -> list[Item]:
        """Remove all calls from a lost actor, the running one first."""
        return [flight.item for flight in self._flights.pop(slot, ())]

    def put_back(self, items: Sequence[Item]) -> None:
        """Requeue calls ahead of all others."""
        for item in reversed(items):
            queue = self._last if item.last else self._queue(item.call)
            queue.appendleft(item)

    def release(self, slots: Iterable[int]) -> None:
        """Release calls bound to an actor that is not in ``slots``, so that any actor may run them."""
        for slot in set(self._bound) - set(slots):
            for item in self._bound.pop(slot):
                self._queue(replace(item.call, slot=None)).append(item)
        self._last = deque(
            item if item.call.slot in (None, *slots) else replace(item, call=replace(item.call, slot=None))
            for item in self._last
        )

    def take_clients(self) -> list[Item]:
        """Remove all training calls that no actor holds yet."""
        taken = []
        for queue in (*self._free.values(), *self._bound.values(), self._last):
            taken += [item for item in queue if item.call.clients]
            kept = [item for item in queue if not item.call.clients]
            queue.clear()
            queue.extend(kept)
        self._free = {block: queue for block, queue in self._free.items() if queue}
        return taken

    def slots_with_clients(self) -> list[int]:
        """Return the slots of actors that hold a training call."""
        return [slot for slot, flights in self._flights.items() if any(f.item.call.clients for f in flights)]

    def fill(self, actors: Mapping[int, Any]) -> None:
        """Assign calls to actors; each gets a first one before any gets a second."""
        for depth in range(_DEPTH):
            for slot, actor in actors.items():
                flights = self._flights.setdefault(slot, deque())
                if len(flights) > depth or (flights and flights[0].item.alone):
                    continue
                if (item := self._next(slot, depth)) is not None:
                    flights.append(_probe(actor, item) if item.alone else _sent(actor, item))
        if self._last and not self._others_unfinished:
            bound = self._last[0].call.slot
            if able := [slot for slot in actors if bound in (None, slot)]:
                self._flights[able[0]].append(_probe(actors[able[0]], self._last.popleft()))

    def send_probed(self, slot: int, actor: Any) -> None:
        """Send the call whose actor answered the liveness probe."""
        flights = self._flights[slot]
        flights[0] = _sent(actor, flights[0].item)

    def _queue(self, call: Call) -> deque[Item]:
        if call.slot is not None:
            return self._bound.setdefault(call.slot, deque())
        return self._free.setdefault(_LAST if call.block is None else call.block, deque())

    def _next(self, slot: int, depth: int) -> Item | None:
        bound = self._bound.get(slot)
        if bound:
            return bound.popleft()
        # The last calls wait for the first idle actor: queued behind a long call they would delay the round.
        if not self._has_free(more_than=len(self._flights) if depth else 0):
            return None
        block = self._block_for(self._nodes[slot])
        queue = self._free[block]
        # A suspected call runs alone: a dying actor may lose the result of the call before it.
        if depth and queue[0].alone:
            return None
        item = queue.popleft()
        if not queue:
            del self._free[block]
        return item

    def _has_free(self, more_than: int) -> bool:
        for queue in self._free.values():
            more_than -= len(queue)
            if more_than < 0:
                return True
        return False

    def _block_for(self, node: str) -> int:
        """Return the node's block while it has calls, then one that no other node has, then the first."""
        mine = self._blocks.get(node)
        if mine is not None and mine != _LAST and mine in self._free:
            return mine
        left = sorted(self._free)
        if mine not in left:
            others = {block for other, block in self._blocks.items() if other != node}
            mine = next((block for block in left if block not in others), left[0])
            self._blocks[node] = mine
        return mine if mine is not None and mine != _LAST else left[0]


def _sent(actor: Any, item: Item) -> Flight:
    call = item.call
    refs = getattr(actor, call.method).options(num_returns=call.num_returns).remote(*call.arguments)
    return Flight(item, refs if isinstance(refs, list) else [refs], time.monotonic())


def _probe(actor: Any, item: Item) -> Flight:
    """Probe an actor for liveness: the call must not be blamed for an actor lost earlier."""
    return Flight(item, [actor.info.remote()], time.monotonic(), probes=True)
