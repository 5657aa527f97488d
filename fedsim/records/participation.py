"""Who took part in a run on simulated devices, by speed and by label: the bias of deadlines, and of who is in reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.world.devices import Devices

PARTS = 5
"""Parts of equal size that clients are divided into by speed."""


def participation(
    devices: Devices,
    clients: Mapping[str, np.ndarray],
    counts_NC: np.ndarray,
    class_names: Sequence[str],
    clock_seconds: float,
) -> dict[str, Any]:
    """Return the summary's figures of who took part.

    Parameters
    ----------
    clients
        The columns ``client``, ``status``, ``began_seconds`` and ``arrived_seconds`` of ``clients.parquet``.
    counts_NC
        Examples of each class that each client holds.
    clock_seconds
        The virtual clock at the end.
    """
    ok = clients["status"] == "ok"
    visits_N = np.bincount(clients["client"][ok].astype(np.int64), minlength=len(devices.sizes_N))
    held = np.flatnonzero(devices.sizes_N > 0)
    ordered = held[np.argsort(devices.seconds_N(0)[held], kind="stable")]
    total = max(int(visits_N.sum()), 1)
    seen_C, all_C = visits_N @ counts_NC, counts_NC[held].sum(axis=0)
    busy = float(np.nansum(clients["arrived_seconds"][ok] - clients["began_seconds"][ok]))
    able = int(devices.able_N.sum())
    return {
        "participation_by_speed": [float(visits_N[part].sum() / total) for part in np.array_split(ordered, PARTS)],
        "participation_by_label": {
            name: {"visits": float(seen), "clients": float(every)}
            for name, seen, every in zip(class_names, _shares(seen_C), _shares(all_C), strict=True)
        },
        "clients_never_seen": int((visits_N[held] == 0).sum()),
        "clients_too_small": len(devices.too_small),
        "device_utilisation": busy / (able * clock_seconds) if able and clock_seconds else None,
    }


def _shares(counts_C: np.ndarray) -> np.ndarray:
    shares_C: np.ndarray = counts_C / max(float(counts_C.sum()), 1.0)
    return shares_C


@dataclass(frozen=True)
class SpeedPart:
    """A part of the clients with training examples, by the length of their visits, and what became of their visits."""

    least_seconds: float
    most_seconds: float
    clients: int
    undrawable: int
    """Clients that are never drawn: too little memory, or never in reach."""
    never: int
    """Clients of which no result counts."""
    drawn: int
    """Visits."""
    taken: int
    late: int
    absent: int
    failed: int

    @property
    def counts(self) -> tuple[int, ...]:
        """All numbers of clients and visits."""
        return (
            self.clients, self.undrawable, self.never, self.drawn, self.taken, self.late, self.absent, self.failed,
        )  # fmt: skip


def by_speed(visits: Mapping[str, np.ndarray], devices: Mapping[str, np.ndarray]) -> list[SpeedPart]:
    """Return the fifths of the clients, fastest first, from the columns of ``visits.parquet`` and ``devices.parquet``."""
    held = np.flatnonzero(devices["drawable"] != "examples")
    seconds_N = devices["visit_seconds"].astype(float)
    order, many = held[np.argsort(seconds_N[held], kind="stable")], len(seconds_N)
    client_V, outcome_V = visits["client"].astype(np.int64), visits["outcome"]
    of = {
        kind: np.bincount(client_V[outcome_V == kind], minlength=many) for kind in ("taken", "late", "absent", "failed")
    }
    found = []
    for part in np.array_split(order, PARTS):
        counts = {kind: int(count_N[part].sum()) for kind, count_N in of.items()}
        found.append(
            SpeedPart(
                float(seconds_N[part].min(initial=np.inf)),
                float(seconds_N[part].max(initial=-np.inf)),
                len(part),
                int((devices["drawable"][part] != "yes").sum()),
                int((of["taken"][part] == 0).sum()),
                sum(counts.values()),
                **counts,
            )
        )
    return found


def by_label(visits: Mapping[str, np.ndarray], counts_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each label's share of the examples behind results that count, visit by visit, and of those of all clients."""
    taken = visits["client"][visits["outcome"] == "taken"].astype(np.int64)
    visits_N = np.bincount(taken, minlength=len(counts_NC))
    return _shares(visits_N @ counts_NC), _shares(counts_NC.sum(axis=0))
