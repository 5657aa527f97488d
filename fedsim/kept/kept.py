"""What a run takes from earlier runs and keeps for later ones: the driver's door to the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedsim.kept.config import CacheConfig
from fedsim.kept.digest import code, digest
from fedsim.kept.store import KINDS, Record, Store

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """Where one value is kept, if at all."""

    kind: str
    key: str
    about: str
    store: Store | None

    def get(self, decode: Callable[[Record], T]) -> T | None:
        """Return the value of an earlier run, or None. An entry that ``decode`` cannot read counts as damaged."""
        record = None if self.store is None else self.store.read(self.kind, self.key)
        if self.store is None or record is None:
            return None
        try:
            value = decode(record)
        except (KeyError, ValueError, TypeError, IndexError):
            self.store.damaged(self.kind, "does not hold what it should")
            return None
        self.store.taken[self.kind] += 1
        return value

    def put(self, record: Record) -> None:
        """Keep a value for later runs."""
        if self.store is not None:
            self.store.write(self.kind, self.key, record, self.about)


class Kept:
    """The cache of a run. Without a store every value is computed, and nothing is kept."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    @classmethod
    def of(cls, config: CacheConfig, note: Callable[[str], None] = lambda text: None) -> Kept:
        """Return the cache that a config asks for.

        Parameters
        ----------
        note
            Called with messages for the user.
        """
        folder = config.path
        return cls() if folder is None else cls(Store(folder, int(config.max_gigabytes * 1e9), note))

    def summary(self) -> dict[str, dict[str, int]] | None:
        """Return how many entries of each kind the run took from earlier ones and wrote; None without a cache."""
        store = self._store
        return None if store is None else {"taken": dict(store.taken), "written": dict(store.written)}

    def slot(self, kind: str, content: Callable[[], Mapping[str, Any] | None], about: str) -> Slot:
        """Return where a value is kept.

        Parameters
        ----------
        kind
            A key of :data:`fedsim.kept.store.KINDS`.
        content
            Returns everything that the value depends on, beside the code; None for what must not be kept. Called only if
            there is a cache.
        about
            What the value is made from, for the user.
        """
        assert kind in KINDS, kind
        if self._store is None or (parts := content()) is None:
            return Slot(kind, "", about, None)
        return Slot(kind, digest({"kind": kind, "code": code(), "content": parts}), about, self._store)


NO_SLOT = Slot("", "", "", None)
"""Of a value that is not kept."""
NOTHING_KEPT = Kept()
"""For what runs without a cache."""
