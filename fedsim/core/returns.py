"""The return value of a call that trains a work group, as one record and as separate Ray objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.messages import ClientReport, WorkGroup


@dataclass(frozen=True)
class TrainReturns:
    """The return value of ``ClientWorker.train``, and how it passes through Ray.

    In Ray each state and each cache is a separate object to which the driver holds a reference.
    """

    reports: tuple[ClientReport, ...]
    """One per client, in the group's order."""
    update: Any
    """The group's sums, or a reference to them; None if no client gave a usable result."""
    states: tuple[Any, ...]
    """Each client's new state, or its old one if it failed; empty if clients keep only counts."""
    caches: tuple[Any, ...] = ()
    """Frozen-layer cache, or None, of each client listed in the group's ``keep_cached``."""

    def pack(self, keeps_state: bool = True) -> tuple[Any, ...]:
        """Return the separate objects that an actor's call returns; without states if clients keep none."""
        return self.reports, self.update, *(self.states if keeps_state else ()), *self.caches

    @classmethod
    def count(cls, group: WorkGroup, keeps_state: bool) -> int:
        """Return the number of objects that :meth:`pack` returns for a group."""
        return 2 + len(group.clients) * keeps_state + len(group.keep_cached)

    @classmethod
    def unpack(cls, packed: Sequence[Any], group: WorkGroup, keeps_state: bool) -> TrainReturns:
        """Rebuild the record from the objects of :meth:`pack`, which may now be references."""
        if len(packed) != cls.count(group, keeps_state):
            raise ValueError(f"group {group.group} returned {len(packed)} objects, not {cls.count(group, keeps_state)}")
        first_cache = len(packed) - len(group.keep_cached)
        return cls(packed[0], packed[1], tuple(packed[2:first_cache]), tuple(packed[first_cache:]))
