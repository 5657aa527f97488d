"""Calls that wait for an actor, and those that each actor has, in the order in which it runs them.

An actor always has a call waiting behind the one that it works on, so it never waits for the driver. Calls of an actor run in
the order in which they were sent; only the first of them is waited for, and only its time counts against the deadline.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

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


@dataclass(frozen=True)
class Flight:
    """A call that was sent to an actor."""

    item: Item
    refs: list[ray.ObjectRef]
    started: float
    """When the actor could begin with it."""


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
        self._free: deque[Item] = deque()
        self._bound: dict[int, deque[Item]] = {}
        self._blocks: dict[str, int] = {}
        """The block that each node takes calls of."""
        for call in calls:
            self._queue(call.slot).append(Item(call))

    @property
    def unfinished(self) -> bool:
        """Whether any call has not returned."""
        return bool(self._free) or any(self._flights.values()) or any(self._bound.values())

    def heads(self) -> dict[ray.ObjectRef, int]:
        """Return the first return of the call that each busy actor works on, with its slot."""
        return {flights[0].refs[0]: slot for slot, flights in self._flights.items() if flights}

    def head(self, slot: int) -> Flight:
        """Return the call that an actor works on."""
        return self._flights[slot][0]

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
            self._queue(item.call.slot).appendleft(item)

    def release(self, slots: Iterable[int]) -> None:
        """Let any actor run the calls that are bound to an actor that is none of ``slots``."""
        for slot in set(self._bound) - set(slots):
            self._free.extend(self._bound.pop(slot))

    def take_clients(self) -> list[Item]:
        """Take all calls that train clients and that no actor has yet."""
        taken = []
        for queue in (self._free, *self._bound.values()):
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
                if len(flights) <= depth and (item := self._next(slot, depth)) is not None:
                    flights.append(_sent(actor, item))

    def _queue(self, slot: int | None) -> deque[Item]:
        return self._free if slot is None else self._bound.setdefault(slot, deque())

    def _next(self, slot: int, depth: int) -> Item | None:
        bound = self._bound.get(slot)
        if bound:
            return bound.popleft()
        # The last calls wait for whoever is idle first: behind a long call they would keep the others waiting.
        if len(self._free) <= (len(self._flights) if depth else 0):
            return None
        if self._free[0].call.block is None:
            return self._free.popleft()
        return self._of_block(self._nodes[slot])

    def _of_block(self, node: str) -> Item:
        """Take a call of the node's block; if there is none left, of one that no node has; if there is none, the next."""
        others = {block for key, block in self._blocks.items() if key != node}
        places: dict[int, int] = {}
        for place, item in enumerate(self._free):
            if item.call.block is not None:
                places.setdefault(item.call.block, place)
        mine = self._blocks.get(node)
        if mine not in places:
            mine = next((block for block in sorted(places) if block not in others), None)
        place = 0 if mine is None else places[mine]
        item = self._free[place]
        del self._free[place]
        if mine is not None:
            self._blocks[node] = mine
        return item


def _sent(actor: Any, item: Item) -> Flight:
    call = item.call
    refs = getattr(actor, call.method).options(num_returns=call.num_returns).remote(*call.arguments)
    return Flight(item, refs if isinstance(refs, list) else [refs], time.monotonic())
