"""The frozen-layer cache on the driver: references to cached states and their sizes, never the states themselves.

Cached are the hidden states that enter the lowest prompted layer for some examples (``clients/backbone/frozen_states.py``).
Workers compute them and return them as a separate object; the driver holds the reference and passes it with the next
call that needs it, so all workers of a node share one copy, freed when it is dropped here. Missing states are recomputed
to the same bits: the cache size affects speed only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Key = int | tuple[int, int]
"""A client id, or the start and stop of a range of validation examples."""

K = TypeVar("K", int, tuple[int, int])


@dataclass
class TrunkCounts:
    """Statistics of the cache."""

    hits: int = 0
    """Lookups that found cached states."""
    misses: int = 0
    """States that a worker had to compute."""
    evictions: int = 0
    """Entries evicted to make room."""
    bytes: int = 0
    """Bytes held."""


class FrozenCache:
    """LRU cache of handles to frozen-layer states, bounded in bytes.

    Parameters
    ----------
    max_bytes
        Bound on all entries together; a single larger entry is never held.
    nbytes
        Size of an entry in bytes; 0 if its key has no cached states, which is then neither looked up nor counted.
    """

    def __init__(self, max_bytes: int, nbytes: Callable[[Key], int]) -> None:
        self.counts = TrunkCounts()
        self._max_bytes = max_bytes
        self._nbytes = nbytes
        self._handles: OrderedDict[Key, Any] = OrderedDict()

    @classmethod
    def none(cls) -> FrozenCache:
        """Return a cache that never holds anything."""
        return cls(0, lambda key: 0)

    def held(self, keys: Iterable[K]) -> dict[K, Any]:
        """Return the handles of the ``keys`` that are held and mark them as used."""
        found = {key: self._handles[key] for key in keys if key in self._handles}
        for key in found:
            self._handles.move_to_end(key)
        self.counts.hits += len(found)
        return found

    def wanted(self, keys: Iterable[K]) -> tuple[K, ...]:
        """Return the ``keys`` whose states a worker has to compute and should return."""
        missing = [key for key in keys if key not in self._handles and self._nbytes(key)]
        self.counts.misses += len(missing)
        return tuple(key for key in missing if self._nbytes(key) <= self._max_bytes)

    def add(self, key: Key, handle: Any) -> None:
        """Add states that a worker returned."""
        if key in self._handles:
            return
        self.counts.bytes += self._nbytes(key)
        while self.counts.bytes > self._max_bytes:
            oldest, _ = self._handles.popitem(last=False)
            self.counts.bytes -= self._nbytes(oldest)
            self.counts.evictions += 1
        self._handles[key] = handle

    def clear(self) -> None:
        """Drop all entries: they may be lost with their node."""
        self._handles.clear()
        self.counts.bytes = 0

    def summary(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self.counts)
