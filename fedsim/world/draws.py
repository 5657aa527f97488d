"""Draws of one quantity for all clients. A client's draw depends on the seed and its id, not on how many clients there are."""

from __future__ import annotations

import numpy as np

from fedsim.core import seeds
from fedsim.world.config import Spread

_TENTH = 1.2815515655446004
"""Standard normal quantile of 90 %."""


def normals(seed: int, what: str, clients: int) -> np.ndarray:
    """Return a standard normal number for each client."""
    return seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"device {what}").standard_normal(clients)


def drawn(value: float | Spread, seed: int, what: str, clients: int) -> np.ndarray:
    """Return a quantity of each client: the same for all, or log-normal."""
    if not isinstance(value, Spread):
        return np.full(clients, float(value))
    drawn_N = value.median * np.exp(value.sigma * normals(seed, what, clients))
    return np.clip(drawn_N, value.least, value.most) if (value.least or value.most) else drawn_N


def shares(share: float | tuple[float, float, float], seed: int, clients: int) -> np.ndarray:
    """Return the share of time that each device is available.

    The logit is normal on either side of the median, with a deviation of its own on each, so that the three percentiles hold.
    """
    if isinstance(share, float):
        return np.full(clients, share)
    low, middle, high = (np.log(part / (1.0 - part)) for part in share)
    normal_N = normals(seed, "share of time", clients)
    logit_N = middle + normal_N * np.where(normal_N < 0, middle - low, high - middle) / _TENTH
    return 1.0 / (1.0 + np.exp(-logit_N))


def slow_ones(share: float, seed: int, clients: int) -> np.ndarray:
    """Return which clients are stragglers: ``share`` of them, rounded."""
    order = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "stragglers").permutation(clients)
    slow_N = np.zeros(clients, dtype=bool)
    slow_N[order[: round(share * clients)]] = True
    return slow_N
