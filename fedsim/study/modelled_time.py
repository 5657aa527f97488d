"""Modelled time of a run: its rounds on devices and a network that a study describes.

The model is ours, no part of the published study. A round takes as long as its slowest client: the global vectors come down,
the client trains on its tokens, and its result goes up, each way with a latency. What a client trains on and what it sends and
receives are the run's records; only speed is modelled. Clients that failed are not waited for, as in the published time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.study.devices import DevicesConfig
from fedsim.world.devices import MEGABIT, Hardware
from fedsim.world.draws import drawn


def hardware_of(devices: DevicesConfig, clients: int) -> Hardware:
    """Draw the devices of clients; a client's depends on ``devices`` and its id alone."""
    return Hardware(
        drawn(devices.tokens_per_second, devices.seed, "tokens per second", clients),
        drawn(devices.downlink_megabits, devices.seed, "downlink", clients) * MEGABIT,
        drawn(devices.uplink_megabits, devices.seed, "uplink", clients) * MEGABIT,
        np.full(clients, devices.latency_seconds),
        np.full(clients, np.inf),
    )


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
    columns = ("round", "client", "num_tokens", "bytes_down", "bytes_up")
    round_K, client_K, tokens_K, down_K, up_K = (clients[name][ok] for name in columns)
    if not len(round_K):
        return {}
    client_K = client_K.astype(np.int64)
    seconds_K = hardware_of(devices, int(client_K.max()) + 1).of(client_K).seconds(tokens_K, down_K, up_K)
    numbers, place_K = np.unique(round_K, return_inverse=True)
    longest_R = np.zeros(len(numbers))
    np.maximum.at(longest_R, place_K, seconds_K)  # unlike max, never passes over NaN
    return dict(zip(numbers.tolist(), longest_R.tolist(), strict=True))
