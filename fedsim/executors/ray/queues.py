"""Calls that wait for an actor, and those that each actor has, in the order in which it runs them.

An actor always has a call waiting behind the one that it works on, so it never waits for the driver. Calls of an actor run in
the order in which they were sent; only the first of them is waited for, and only its time counts against the deadline.

Where a node runs out of memory, Ray kills actors until enough is free, the youngest first, whoever took it. Calls that were
lost that way come last, each when nothing else runs: they have all memory there is, and one that is lost again was at fault.
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
"""Stands for the block of calls that have none: evaluations, which come behind all others."""
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
    clients: tuple[int, ...] = ()
    """Clients that train in it: those that may be left out of the round if it comes to nothing."""
    block: int | None = None
    """Calls of a block go to one node as far as that keeps nobody waiting, since their sums are added there."""
    split: Callable[[], list[Call]] | None = None
    """Makes a call for each client, by which the one at fault is found; None where there is but one."""
    part: int = 0
    """Number among the calls that a call was split into."""
    parts: int = 1
    """How many these are."""


@dataclass(frozen=True)
class Item:
    """A call on its way, and what has happened to it."""

    call: Call
    failures: int = 0
    """Times that its actor was lost or that it took too long."""
    alone: bool = False
    """It was split off a call that came to nothing."""
    last: bool = False
    """Its actor was killed for want of memory: it runs when nothing else does."""


@dataclass(frozen=True)
class Flight:
    """A call that was sent to an actor."""

    item: Item
    refs: list[ray.ObjectRef]
    started: float
    """When the actor could begin with it."""
    probes: bool = False
    """Only a question whether the actor is still there, asked before a call that is suspected is sent."""


class Queues:
    """All calls of one go.

    Parameters
    ----------
    nodes
        Node of each slot; read anew whenever a call is given out.
    """

    def __init__(self, calls: Iterable[Call], nodes: Mapping[int, str]) -> None:
        self._nodes = nodes
        self._flights: dict[int, deque[Flight]] = {}
        self._free: dict[int, deque[Item]] = {}
        """Calls that any actor may run, by block."""
        self._bound: dict[int, deque[Item]] = {}
        """Calls that one actor has to run, by slot."""
        self._last: deque[Item] = deque()
        """Calls that run when nothing else does."""
        self._blocks: dict[str, int] = {}
        """The block that each node takes calls of."""
        for call in calls:
            self._queue(call).append(Item(call))

    @property
    def unfinished(self) -> bool:
        """Whether any call has not returned."""
        return bool(self._last) or self._others_unfinished

    @property
    def _others_unfinished(self) -> bool:
        return any(any(queues.values()) for queues in (self._free, self._flights, self._bound))

    def heads(self) -> dict[ray.ObjectRef, int]:
        """Return the first return of the call that each busy actor works on, with its slot."""
        return {flights[0].refs[0]: slot for slot, flights in self._flights.items() if flights}

    def head(self, slot: int) -> Flight:
        """Return the call that an actor works on."""
        return self._flights[slot][0]

    def last_calls(self) -> dict[ray.ObjectRef, int]:
        """Return the first return of the last call that each busy actor has, with its slot."""
        return {flights[-1].refs[0]: slot for slot, flights in self._flights.items() if flights}

    def pop(self, slot: int) -> Flight:
        """Take off the call that an actor has done; the one behind it has its turn from now."""
        flights = self._flights[slot]
        done = flights.popleft()
        if flights:
            flights[0] = replace(flights[0], started=time.monotonic())
        return done

    def take(self, slot: int) -> list[Item]:
        """Take all calls away from an actor that is lost, the one at work first."""
        return [flight.item for flight in self._flights.pop(slot, ())]

    def put_back(self, items: Sequence[Item]) -> None:
        """Let calls wait again, before all others."""
        for item in reversed(items):
            queue = self._last if item.last else self._queue(item.call)
            queue.appendleft(item)

    def release(self, slots: Iterable[int]) -> None:
        """Let any actor run the calls that are bound to an actor that is none of ``slots``."""
        for slot in set(self._bound) - set(slots):
            for item in self._bound.pop(slot):
                self._queue(replace(item.call, slot=None)).append(item)
        self._last = deque(
            item if item.call.slot in (None, *slots) else replace(item, call=replace(item.call, slot=None))
            for item in self._last
        )

    def take_clients(self) -> list[Item]:
        """Take all calls that train clients and that no actor has yet."""
        taken = []
        for queue in (*self._free.values(), *self._bound.values(), self._last):
            taken += [item for item in queue if item.call.clients]
            kept = [item for item in queue if not item.call.clients]
            queue.clear()
            queue.extend(kept)
        return taken

    def slots_with_clients(self) -> list[int]:
        """Return the slots of actors that have a call that trains clients."""
        return [slot for slot, flights in self._flights.items() if any(f.item.call.clients for f in flights)]

    def fill(self, actors: Mapping[int, Any]) -> None:
        """Give each of the actors its next calls; all get a first one before any gets a second."""
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
        """Send the call for which an actor was asked whether it is there."""
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
        # The last calls wait for whoever is idle first: behind a long call they would keep the others waiting.
        if sum(map(len, self._free.values())) <= (len(self._flights) if depth else 0):
            return None
        queue = self._free[self._block_for(self._nodes[slot])]
        # One that is suspected runs by itself: an actor that dies may take the answer to the call before with it.
        return None if depth and queue[0].alone else queue.popleft()

    def _block_for(self, node: str) -> int:
        """Return the node's block as long as it has calls, then one that no other node has, then the first."""
        left = sorted(block for block, queue in self._free.items() if queue)
        mine = self._blocks.get(node)
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
    """Ask an actor whether it is there: one that was lost before must not be blamed on the call."""
    return Flight(item, [actor.info.remote()], time.monotonic(), probes=True)
