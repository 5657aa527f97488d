"""What a call that trains a work group returns, as one record and as the objects that go through Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.messages import ClientReport, WorkGroup


@dataclass(frozen=True)
class TrainReturns:
    """What comes of a call that trains a group: what ``ClientWorker.train`` returns, and how it goes through Ray.

    In Ray each state and each cache is an object of its own, which the driver holds a reference to.
    """

    reports: tuple[ClientReport, ...]
    """One a client, in the group's order."""
    update: Any
    """The group's sums, None if no client gave a usable result; or the reference to it."""
    states: tuple[Any, ...]
    """Each client's new state, the old one where it failed; empty where clients keep nothing but counts."""
    caches: tuple[Any, ...] = ()
    """Of each client that the group names in ``keep_cached``: its frozen-layer cache, or None."""

    def pack(self, keeps_state: bool = True) -> tuple[Any, ...]:
        """Return what an actor's call returns, object by object; without the states where clients keep nothing."""
        return self.reports, self.update, *(self.states if keeps_state else ()), *self.caches

    @classmethod
    def count(cls, group: WorkGroup, keeps_state: bool) -> int:
        """Return how many objects :meth:`pack` gives for a group."""
        return 2 + len(group.clients) * keeps_state + len(group.keep_cached)

    @classmethod
    def unpack(cls, packed: Sequence[Any], group: WorkGroup, keeps_state: bool) -> TrainReturns:
        """Return the record that :meth:`pack` has taken apart; its entries may be references by now."""
        if len(packed) != cls.count(group, keeps_state):
            raise ValueError(f"group {group.group} returned {len(packed)} objects, not {cls.count(group, keeps_state)}")
        first_cache = len(packed) - len(group.keep_cached)
        return cls(packed[0], packed[1], tuple(packed[2:first_cache]), tuple(packed[first_cache:]))
