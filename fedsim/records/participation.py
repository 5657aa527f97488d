"""Who took part in a run on simulated devices, by speed and by label: the bias of deadlines, and of who is in reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.world.devices import Devices

_PARTS = 5
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
    by_speed = held[np.argsort(devices.seconds_N(0)[held], kind="stable")]
    total = max(int(visits_N.sum()), 1)
    seen_C, all_C = visits_N @ counts_NC, counts_NC[held].sum(axis=0)
    busy = float(np.nansum(clients["arrived_seconds"][ok] - clients["began_seconds"][ok]))
    able = int(devices.able_N.sum())
    return {
        "participation_by_speed": [float(visits_N[part].sum() / total) for part in np.array_split(by_speed, _PARTS)],
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
