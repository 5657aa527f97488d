"""Keeps the frozen layers' output from round to round: references and their sizes, never the hidden states themselves.

Cached are the hidden states that enter the lowest prompted layer for some examples (``clients/backbone/frozen_states.py``).
Workers compute them and hand them back as an object of its own; the driver holds the reference and hands it in with the next
call that needs it, so it is shared by all workers of a node and freed when it is dropped here. What is missing is computed
anew in the same bits: how much is kept changes time alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Key = int | tuple[int, int]
"""A client, or a range of validation examples: its start and its stop."""

K = TypeVar("K", int, tuple[int, int])


@dataclass
class TrunkCounts:
    """What the cache did."""

    hits: int = 0
    """Trunks that were handed in."""
    misses: int = 0
    """Trunks that a worker had to compute."""
    evictions: int = 0
    """Trunks that were dropped to make room."""
    bytes: int = 0
    """Bytes of what is held."""


class FrozenCache:
    """Handles of trunks within a bound of memory; the one that was used longest ago makes room.

    Parameters
    ----------
    max_bytes
        Bound of all trunks together; one that is larger by itself is never held.
    nbytes
        Bytes of a trunk, or 0 where none is used, which is then neither asked for nor counted.
    """

    def __init__(self, max_bytes: int, nbytes: Callable[[Key], int]) -> None:
        self.counts = TrunkCounts()
        self._max_bytes = max_bytes
        self._nbytes = nbytes
        self._handles: OrderedDict[Key, Any] = OrderedDict()

    @classmethod
    def none(cls) -> FrozenCache:
        """Return a cache for a run without trunks."""
        return cls(0, lambda key: 0)

    def held(self, keys: Iterable[K]) -> dict[K, Any]:
        """Return the handles of those of ``keys`` that are held; they count as used now."""
        found = {key: self._handles[key] for key in keys if key in self._handles}
        for key in found:
            self._handles.move_to_end(key)
        self.counts.hits += len(found)
        return found

    def wanted(self, keys: Iterable[K]) -> tuple[K, ...]:
        """Return those of ``keys`` whose trunk a worker is about to compute and should hand back."""
        missing = [key for key in keys if key not in self._handles and self._nbytes(key)]
        self.counts.misses += len(missing)
        return tuple(key for key in missing if self._nbytes(key) <= self._max_bytes)

    def add(self, key: Key, handle: Any) -> None:
        """Hold a trunk that was handed back."""
        if key in self._handles:
            return
        self.counts.bytes += self._nbytes(key)
        while self.counts.bytes > self._max_bytes:
            oldest, _ = self._handles.popitem(last=False)
            self.counts.bytes -= self._nbytes(oldest)
            self.counts.evictions += 1
        self._handles[key] = handle

    def clear(self) -> None:
        """Hold nothing: what was held may be gone with its node."""
        self._handles.clear()
        self.counts.bytes = 0

    def summary(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self.counts)
