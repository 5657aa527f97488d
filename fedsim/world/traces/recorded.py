"""Devices and availability on record, and how they are dealt out to clients.

Shape suffixes: D devices on record, Z intervals of all of them, N clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedsim.core import seeds
from fedsim.core.errors import DataError
from fedsim.world.availability import Traces

CLIENT, DEVICE = "client", "device"
"""Names of the column of ids: of clients of the run, or of devices that are dealt out to clients."""


@dataclass(frozen=True)
class Owners:
    """Whose the records of a file are."""

    path: Path
    ids: Sequence[int | str]
    """Of each device on record, no id twice."""
    of_clients: bool = False
    """Whether these are clients; else devices are dealt out with the seed, each again when all are."""

    def of_each(self, clients: int, seed: int, what: str) -> np.ndarray:
        """Return which record each client has, int64 [N].

        Raises
        ------
        DataError
            If the records are of clients, and one of the run's has none.
        """
        if not self.of_clients:
            order = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"dealt {what}").permutation(len(self.ids))
            dealt_N: np.ndarray = order[np.arange(clients) % len(order)]
            return dealt_N
        place = {client: index for index, client in enumerate(self.ids)}
        if missing := [client for client in range(clients) if client not in place]:
            raise DataError(
                f"{self.path}: the column client has no row for client {missing[0]} ({len(missing):,} of {clients:,} are "
                "missing); give every client from 0 on, or name the column device, to deal the rows out"
            )
        return np.array([place[client] for client in range(clients)], dtype=np.int64)


@dataclass(frozen=True)
class RecordedDevices:
    """Speeds of devices on record."""

    owners: Owners
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """float64 [D] by name, as in :class:`fedsim.world.config.DevicesConfig`; NaN where the file does not say."""
    relative_speed_D: np.ndarray | None = None
    """Speeds over their median, where the file does not know of tokens."""


@dataclass(frozen=True)
class RecordedTraces:
    """Intervals of devices on record."""

    owners: Owners
    offsets_D1: np.ndarray
    starts_Z: np.ndarray
    ends_Z: np.ndarray
    periods_D: np.ndarray

    def dealt(self, clients: int, seed: int) -> Traces:
        """Return the clients' availability."""
        row_N = self.owners.of_each(clients, seed, "traces")
        counts_D = np.diff(self.offsets_D1)
        counts_N = counts_D[row_N]
        offsets_N1 = np.concatenate([[0], np.cumsum(counts_N)])
        first_Z = np.repeat(self.offsets_D1[row_N], counts_N)
        rows_Z = first_Z + np.arange(offsets_N1[-1]) - np.repeat(offsets_N1[:-1], counts_N)
        return Traces(offsets_N1, self.starts_Z[rows_Z], self.ends_Z[rows_Z], self.periods_D[row_N])


def traces_of(
    owners: Owners,
    owner_Z: np.ndarray,
    starts_Z: np.ndarray,
    ends_Z: np.ndarray,
    periods_D: np.ndarray,
    place: Callable[[int], str],
) -> RecordedTraces:
    """Return intervals in order, once they are found to be possible.

    Parameters
    ----------
    owner_Z
        Index of each interval's device in ``owners.ids``.
    place
        Where an interval stands in the file, for messages.

    Raises
    ------
    DataError
        If an interval is empty, reaches past its trace, or overlaps another one of its device.
    """
    order = _in_order(owner_Z, starts_Z)
    owner_Z, starts_Z, ends_Z = owner_Z[order], starts_Z[order], ends_Z[order]

    def refuse(bad_Z: np.ndarray, what: str) -> None:
        if bad_Z.any():
            index = int(np.flatnonzero(bad_Z)[0])
            seconds = f"from {starts_Z[index]:g} to {ends_Z[index]:g} seconds"
            device = owners.ids[int(owner_Z[index])]
            raise DataError(f"{owners.path}: {place(int(order[index]))}: the interval of {device} {seconds} {what}")

    refuse(~(np.isfinite(starts_Z) & np.isfinite(ends_Z)), "has an end that is no finite number")
    refuse(~(starts_Z < ends_Z), "does not end after it begins")
    refuse(starts_Z < 0, "begins before the trace does")
    refuse(ends_Z > periods_D[owner_Z], "ends after the trace does")
    same_Z = owner_Z[1:] == owner_Z[:-1]
    refuse(np.concatenate([[False], same_Z & (starts_Z[1:] < ends_Z[:-1])])[: len(order)], "overlaps the one before it")
    offsets_D1 = np.concatenate([[0], np.cumsum(np.bincount(owner_Z, minlength=len(owners.ids)))]).astype(np.int64)
    return RecordedTraces(owners, offsets_D1, starts_Z, ends_Z, periods_D)


def _in_order(owner_Z: np.ndarray, starts_Z: np.ndarray) -> np.ndarray:
    """Return the order by owner, then by beginning; most files have it already."""
    owners, starts = np.diff(owner_Z), np.diff(starts_Z)
    if ((owners > 0) | ((owners == 0) & (starts >= 0))).all():
        return np.arange(len(owner_Z))
    return np.lexsort((starts_Z, owner_Z))
