"""What a run takes from earlier runs and keeps for later ones: the driver's door to the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Place:
    """Where values are kept."""

    folder: Path
    max_bytes: int


@dataclass(frozen=True)
class Account:
    """What a process took from the cache and wrote, by kind, and its messages for the user."""

    taken: Mapping[str, int]
    written: Mapping[str, int]
    notes: Sequence[str]


NO_ACCOUNT = Account({}, {}, ())


class Kept:
    """The cache of a run. Without a store every value is computed, and nothing is kept.

    Parameters
    ----------
    place
        Where the store is; None without one.
    note
        Called with messages for the user.
    """

    def __init__(self, place: Place | None = None, note: Callable[[str], None] | None = None) -> None:
        self.place = place
        self._notes: list[str] = []
        self._note = note or self._notes.append
        self._store = None if place is None else Store(place.folder, place.max_bytes, self._note)

    @classmethod
    def of(cls, config: CacheConfig, note: Callable[[str], None] = lambda text: None) -> Kept:
        """Return the cache that a config asks for.

        Parameters
        ----------
        note
            Called with messages for the user.
        """
        folder = config.path
        return cls() if folder is None else cls(Place(folder.absolute(), int(config.max_gigabytes * 1e9)), note)

    def account(self) -> Account:
        """Return what was taken and written, if another process accounts for it: without a ``note`` of its own."""
        store = self._store
        if store is None or self._note != self._notes.append:
            return NO_ACCOUNT
        return Account(dict(store.taken), dict(store.written), tuple(self._notes))

    def take_in(self, account: Account) -> None:
        """Add what another process took and wrote."""
        for sentence in account.notes:
            self._note(sentence)
        if self._store is not None:
            self._store.taken.update(account.taken)
            self._store.written.update(account.written)

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
