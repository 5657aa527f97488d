"""When devices are in reach, as intervals of the virtual clock.

Everything follows from one question: which interval contains a time, or is the next one? Shape suffixes: N clients, K those
asked for, Z intervals of all devices, B intervals of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedsim.core import seeds
from fedsim.world.config import AvailabilityConfig
from fedsim.world.draws import drawn, normals, shares

DAY, HOUR = 86_400.0, 3_600.0
BLOCK = 16
"""Intervals that are drawn at a time."""


class Availability(Protocol):
    """Intervals in which each client is in reach."""

    def interval(self, seconds: float, clients: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return beginning and end of the interval that contains a time, else of the next one.

        Both float64 [K], infinite for a device that is never in reach again. An end is not part of its interval.
        """
        ...


@dataclass(frozen=True)
class Always:
    """Devices that are always in reach."""

    def interval(self, seconds: float, clients: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return zero and infinity."""
        return np.zeros(len(clients)), np.full(len(clients), np.inf)


@dataclass(frozen=True)
class Traces:
    """Intervals on record, repeated without end: behind a device's trace it begins anew.

    An interval that reaches the end of the trace and one that begins with it are one.
    """

    offsets_N1: np.ndarray
    """int64; device i has the intervals ``offsets_N1[i]`` to ``offsets_N1[i + 1]``."""
    starts_Z: np.ndarray
    ends_Z: np.ndarray
    """Ascending within a device, without overlaps, between 0 and its period."""
    periods_N: np.ndarray

    def interval(self, seconds: float, clients: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Availability.interval`."""
        clients_K = np.asarray(clients, dtype=np.int64)
        first_K, stop_K, period_K = (
            self.offsets_N1[clients_K],
            self.offsets_N1[clients_K + 1],
            self.periods_N[clients_K],
        )
        begun_K = np.floor(seconds / period_K) * period_K
        found_K = self._first_ending_after(seconds - begun_K, first_K, stop_K)
        over_K = found_K == stop_K
        found_K, begun_K = np.where(over_K, first_K, found_K), begun_K + np.where(over_K, period_K, 0.0)
        some_K = stop_K > first_K
        if not len(self.starts_Z):
            return np.full(len(clients_K), np.inf), np.full(len(clients_K), np.inf)
        at_K, head_K, tail_K = (np.where(some_K, index, 0) for index in (found_K, first_K, stop_K - 1))
        joined_K = (self.starts_Z[head_K] == 0.0) & (self.ends_Z[tail_K] == period_K)
        on_K = np.where(joined_K & (at_K == tail_K), period_K + self.ends_Z[head_K], self.ends_Z[at_K])
        on_K = np.where(joined_K & (head_K == tail_K), np.inf, on_K)  # in reach throughout
        start_K = np.where(some_K, begun_K + self.starts_Z[at_K], np.inf)
        end_K = np.where(some_K, begun_K + on_K, np.inf)
        if (over_K := end_K <= seconds).any():  # at its very end, as rounded with the periods before it
            start_K[over_K], end_K[over_K] = self.interval(np.nextafter(seconds, np.inf), clients_K[over_K])
        return start_K, end_K

    def _first_ending_after(self, phase_K: np.ndarray, low_K: np.ndarray, high_K: np.ndarray) -> np.ndarray:
        """Return, by bisection, the first interval of each device that ends later; its stop if none does."""
        low_K, high_K = low_K.copy(), high_K.copy()
        while (open_K := low_K < high_K).any():
            middle_K = (low_K + high_K) // 2
            later_K = self.ends_Z[np.where(open_K, middle_K, 0)] > phase_K
            high_K = np.where(open_K & later_K, middle_K, high_K)
            low_K = np.where(open_K & ~later_K, middle_K + 1, low_K)
        return low_K


@dataclass
class Markov:
    """Devices that are in reach and away in turn, for exponential times; drawn as far as is asked for."""

    seed: int
    on_N: np.ndarray
    """Mean seconds in reach."""
    off_N: np.ndarray
    """Mean seconds away."""
    _starts: list[np.ndarray] = field(default_factory=list)
    """float64 [N, B] each."""
    _ends: list[np.ndarray] = field(default_factory=list)

    def interval(self, seconds: float, clients: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Availability.interval`."""
        clients_K = np.asarray(clients, dtype=np.int64)
        starts_K, ends_K = np.full(len(clients_K), np.inf), np.full(len(clients_K), np.inf)
        left_J, block = np.arange(len(clients_K)), 0
        while len(left_J):
            if block == len(self._ends):
                self._grow()
            ends_JB = self._ends[block][clients_K[left_J]]
            here_J = ends_JB[:, -1] > seconds
            at_J = (ends_JB <= seconds).sum(axis=1)[here_J]
            found_J = left_J[here_J]
            starts_K[found_J] = self._starts[block][clients_K[found_J], at_J]
            ends_K[found_J] = ends_JB[here_J, at_J]
            left_J, block = left_J[~here_J], block + 1
        return starts_K, ends_K

    def _grow(self) -> None:
        """Draw the next intervals of all devices."""
        block, clients = len(self._ends), len(self.on_N)
        rng = seeds.stream(self.seed, block, seeds.NO_CLIENT, "availability")
        times_NB2 = rng.standard_exponential((clients, BLOCK, 2)) * np.stack([self.off_N, self.on_N], -1)[:, None, :]
        if block == 0:  # what is left of an exponential time is exponential, so the clock may start anywhere in it
            share_N = self.on_N / (self.on_N + self.off_N)
            start = seeds.stream(self.seed, seeds.NO_ROUND, seeds.NO_CLIENT, "availability")
            times_NB2[start.random(clients) < share_N, 0, 0] = 0.0
        before_N = self._ends[-1][:, -1] if block else np.zeros(clients)
        edges_NE = before_N[:, None] + np.cumsum(times_NB2.reshape(clients, -1), axis=1)
        self._starts.append(edges_NE[:, 0::2])
        self._ends.append(edges_NE[:, 1::2])


def draw_availability(config: AvailabilityConfig, seed: int, clients: int) -> Availability:
    """Return the availability of the clients' devices, for every kind but traces."""
    if config.kind == "always":
        return Always()
    share_N = shares(config.share, seed, clients)
    if config.kind == "markov":
        cycle_N = drawn(config.cycle_hours, seed, "cycle", clients) * HOUR
        return Markov(seed, share_N * cycle_N, (1.0 - share_N) * cycle_N)
    middle_N = (config.peak_hour + config.peak_spread_hours * normals(seed, "hour", clients)) * HOUR
    return _daily((middle_N - share_N * DAY / 2) % DAY, share_N * DAY)


def _daily(start_N: np.ndarray, length_N: np.ndarray) -> Traces:
    """Return one interval a day; past midnight it is two, that Traces joins."""
    end_N = start_N + length_N
    past_N = end_N > DAY
    offsets_N1 = np.concatenate([[0], np.cumsum(1 + past_N)])
    starts_Z, ends_Z = np.zeros(offsets_N1[-1]), np.zeros(offsets_N1[-1])
    starts_Z[offsets_N1[1:] - 1], ends_Z[offsets_N1[1:] - 1] = start_N, np.minimum(end_N, DAY)
    ends_Z[offsets_N1[:-1][past_N]] = end_N[past_N] - DAY
    return Traces(offsets_N1, starts_Z, ends_Z, np.full(len(start_N), DAY))
