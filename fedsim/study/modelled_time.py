"""Modelled time of a run: its rounds on devices and a network that a study describes.

The model is ours, no part of the published study. A round takes as long as its slowest client: the global vectors come down,
the client trains on its tokens, and its result goes up, each way with a latency. What a client trains on and what it sends and
receives are the run's records; only speed is modelled. Clients that failed are not waited for, as in the published time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.core import seeds
from fedsim.study.devices import DevicesConfig, Spread

BYTES_PER_MEGABIT = 125_000


@dataclass(frozen=True)
class Device:
    """A client's device and its connection."""

    tokens_per_second: float
    downlink_bytes: float
    """Bytes that it receives in a second."""
    uplink_bytes: float
    """Bytes that it sends in a second."""

    @classmethod
    def of(cls, client: int, devices: DevicesConfig) -> Device:
        """Draw the device of a client; it depends on ``devices`` and the client alone."""

        def drawn(value: float | Spread, what: str) -> float:
            if not isinstance(value, Spread):
                return value
            normal = seeds.stream(devices.seed, seeds.NO_ROUND, client, f"device {what}").standard_normal()
            return value.median * math.exp(value.sigma * normal)

        return cls(
            drawn(devices.tokens_per_second, "tokens per second"),
            drawn(devices.downlink_megabits, "downlink") * BYTES_PER_MEGABIT,
            drawn(devices.uplink_megabits, "uplink") * BYTES_PER_MEGABIT,
        )

    def seconds(self, tokens: float, bytes_down: float, bytes_up: float, latency_seconds: float) -> float:
        """Return the time from the server's broadcast to the arrival of the client's result."""
        transfers = bytes_down / self.downlink_bytes + bytes_up / self.uplink_bytes
        return 2 * latency_seconds + transfers + tokens / self.tokens_per_second


def round_seconds(clients: Mapping[str, np.ndarray], devices: DevicesConfig) -> dict[int, float]:
    """Return the modelled seconds of each round.

    Parameters
    ----------
    clients
        The columns ``round``, ``client``, ``num_tokens``, ``bytes_down``, ``bytes_up`` and ``status`` of ``clients.parquet``.

    Returns
    -------
    dict
        By round, ascending; NaN for a round with a client whose tokens are not on record.
    """
    ok = clients["status"] == "ok"
    rows = {name: clients[name][ok] for name in ("round", "client", "num_tokens", "bytes_down", "bytes_up")}
    own = {client: Device.of(client, devices) for client in np.unique(rows["client"]).tolist()}
    seconds: dict[int, float] = {}
    for round, client, tokens, down, up in zip(*(column.tolist() for column in rows.values()), strict=True):
        needed = own[client].seconds(tokens, down, up, devices.latency_seconds)
        seconds[round] = float(np.maximum(seconds.get(round, 0.0), needed))  # unlike max, never passes over NaN
    return dict(sorted(seconds.items()))
