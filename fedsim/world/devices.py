"""The clients' devices: how fast they compute, what they can hold, when they are in reach, and how long a visit takes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from fedsim.world.availability import Availability, draw_availability
from fedsim.world.config import DevicesConfig, Spread
from fedsim.world.cost import VisitCost
from fedsim.world.draws import drawn, slow_ones
from fedsim.world.enough import GIGABYTE, Drawable
from fedsim.world.traces.recorded import RecordedDevices, RecordedTraces

MEGABIT = 125_000
"""In bytes."""


@dataclass(frozen=True)
class Hardware:
    """Devices and their connections; float64 [N] each."""

    tokens_per_second_N: np.ndarray
    downlink_bytes_N: np.ndarray
    """Bytes that a device receives in a second."""
    uplink_bytes_N: np.ndarray
    """Bytes that it sends in a second."""
    latency_seconds_N: np.ndarray
    memory_bytes_N: np.ndarray

    @classmethod
    def drawn(cls, config: DevicesConfig, seed: int, clients: int) -> Hardware:
        """Draw the devices of all clients."""
        speed_N = drawn(config.tokens_per_second, seed, "tokens per second", clients)
        return cls(
            speed_N,
            drawn(config.downlink_megabits, seed, "downlink", clients) * MEGABIT,
            drawn(config.uplink_megabits, seed, "uplink", clients) * MEGABIT,
            np.full(clients, config.latency_seconds),
            drawn(config.gigabytes, seed, "memory", clients) * GIGABYTE,
        )

    def recorded(self, found: RecordedDevices, config: DevicesConfig, seed: int) -> Hardware:
        """Return the devices with what a file states of them, dealt out to the clients."""
        row_N = found.owners.of_each(len(self.memory_bytes_N), seed, "devices")
        units = {
            "tokens_per_second": ("tokens_per_second_N", 1),
            "downlink_megabits": ("downlink_bytes_N", MEGABIT),
            "uplink_megabits": ("uplink_bytes_N", MEGABIT),
            "latency_seconds": ("latency_seconds_N", 1),
            "gigabytes": ("memory_bytes_N", GIGABYTE),
        }
        changed = {}
        for name, values_D in found.columns.items():
            own, unit = units[name]
            values_N = values_D[row_N] * unit
            changed[own] = np.where(np.isnan(values_N), getattr(self, own), values_N)
        if found.relative_speed_D is not None:
            speed = config.tokens_per_second
            median = speed.median if isinstance(speed, Spread) else speed
            changed["tokens_per_second_N"] = median * found.relative_speed_D[row_N]
        return replace(self, **changed)

    def with_stragglers(self, config: DevicesConfig, seed: int) -> Hardware:
        """Return the devices, some of them slower."""
        if not config.slow_share:
            return self
        slow_N = slow_ones(config.slow_share, seed, len(self.tokens_per_second_N))
        speed_N = self.tokens_per_second_N / np.where(slow_N, config.slow_factor, 1.0)
        return replace(self, tokens_per_second_N=speed_N)

    def of(self, clients: np.ndarray) -> Hardware:
        """Return the devices of some clients, in their order."""
        return Hardware(*(getattr(self, each.name)[clients] for each in fields(self)))

    def seconds(self, tokens_N: np.ndarray, bytes_down: float | np.ndarray, bytes_up: float | np.ndarray) -> np.ndarray:
        """Return the time of each device from the server's broadcast to the arrival of its result."""
        transfers_N = bytes_down / self.downlink_bytes_N + bytes_up / self.uplink_bytes_N
        return 2 * self.latency_seconds_N + transfers_N + tokens_N / self.tokens_per_second_N


class Devices:
    """The devices, and what a visit of theirs takes.

    Attributes
    ----------
    able_N
        Clients that can be drawn: they have examples, their device holds the model, and it is in reach some time.
    too_small
        Clients with examples whose device cannot hold the model.
    """

    def __init__(self, hardware: Hardware, availability: Availability, cost: VisitCost, sizes_N: np.ndarray) -> None:
        self.hardware, self.cost, self.sizes_N, self._availability = hardware, cost, sizes_N, availability
        self._all_N = np.arange(len(sizes_N))
        small_N = hardware.memory_bytes_N < cost.needed_bytes
        self.too_small: tuple[int, ...] = tuple(np.flatnonzero(small_N & (sizes_N > 0)).tolist())
        self.able_N: np.ndarray = (sizes_N > 0) & ~small_N & np.isfinite(self.next_available(0.0))
        self._seconds: dict[tuple[bool, int, int], np.ndarray] = {}

    @classmethod
    def of(
        cls,
        config: DevicesConfig,
        seed: int,
        cost: VisitCost,
        sizes_N: np.ndarray,
        recorded: RecordedDevices | None = None,
        traces: RecordedTraces | None = None,
    ) -> Devices:
        """Return the devices of a run: drawn with the seed, or as recorded in files."""
        clients = len(sizes_N)
        hardware = Hardware.drawn(config, seed, clients)
        if recorded is not None:
            hardware = hardware.recorded(recorded, config, seed)
        reach = draw_availability(config.availability, seed, clients) if traces is None else traces.dealt(clients, seed)
        return cls(hardware.with_stragglers(config, seed), reach, cost, sizes_N)

    @property
    def drawable(self) -> Drawable:
        """How many clients can be drawn."""
        reach_N = np.isfinite(self.next_available(0.0))
        return Drawable.of(self.sizes_N, self.hardware.memory_bytes_N, self.cost.needed_bytes, reach_N)

    def notes(self) -> list[str]:
        """Return what the user should know of clients that are never drawn."""
        clients, found = self.drawable, []
        if clients.too_small:
            needed = clients.needed_bytes / GIGABYTE
            found.append(
                f"{clients.too_small:,} clients are never drawn: their devices cannot hold the model ({needed:.2g} GB)"
            )
        if clients.away:
            found.append(f"{clients.away:,} clients are never drawn: their devices are never in reach")
        return found

    def available_N(self, seconds: float) -> np.ndarray:
        """Return which clients are in reach at a time."""
        return self._availability.interval(seconds, self._all_N)[0] <= seconds

    def next_available(self, seconds: float) -> np.ndarray:
        """Return when each client is in reach next, float64 [N]: at ``seconds`` where it is now, infinity if never again."""
        return np.maximum(self._availability.interval(seconds, self._all_N)[0], seconds)

    def reach_N(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Return when each client is in reach next, as :meth:`next_available`, and until when it then stays so."""
        starts_N, ends_N = self._availability.interval(seconds, self._all_N)
        return np.maximum(starts_N, seconds), ends_N

    def seconds(self, client: int, round: int, *, last: int | None = None) -> float:
        """Return how long a client's visit takes, from the broadcast to the arrival of its result.

        Parameters
        ----------
        round
            The round, counted from 0, whose state it starts from.
        last
            The same of its last visit; None for its first, which may have to compute the frozen-layer cache.
        """
        missed = None if last is None else round - last
        return float(self.seconds_N(round, missed)[client])

    def seconds_K(self, clients_K: np.ndarray, round: int, last_K: np.ndarray) -> np.ndarray:
        """Return how long visits of some clients take; ``last_K``: as for :meth:`seconds`, -1 for a first visit."""
        found_K = np.empty(len(clients_K))
        for last in np.unique(last_K).tolist():
            chosen_K = last_K == last
            found_K[chosen_K] = self.seconds_N(round, None if last < 0 else round - last)[clients_K[chosen_K]]
        return found_K

    def phases(self, client: int, round: int, missed: int | None) -> tuple[float, float]:
        """Return how long a visit receives, and how long it trains; what is left of its time it sends."""
        own, (down, _) = self.hardware, self.cost.travel(round, missed)
        tokens_N = self.cost.first_tokens_N if missed is None else self.cost.tokens_N
        receiving = own.latency_seconds_N[client] + down / own.downlink_bytes_N[client]
        return float(receiving), float(tokens_N[client] / own.tokens_per_second_N[client])

    def seconds_N(self, round: int, missed: int | None = 1) -> np.ndarray:
        """Return how long a visit of each client takes that was last here ``missed`` rounds before, or (None) never."""
        key = missed is None, *self.cost.travel(round, missed)
        if key not in self._seconds:
            tokens_N = self.cost.first_tokens_N if missed is None else self.cost.tokens_N
            self._seconds[key] = self.hardware.seconds(tokens_N, *key[1:])
        return self._seconds[key]
