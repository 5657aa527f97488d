"""Whether enough clients can be drawn, as far as it is known before anything is scored or trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.core.errors import ConfigError
from fedsim.world.buffer_config import BufferConfig
from fedsim.world.config import WorldConfig
from server.config import SamplingConfig

GIGABYTE = 10**9
"""In bytes."""


@dataclass(frozen=True)
class Drawable:
    """How many clients can be drawn, and why others cannot."""

    holding: int
    """Clients with training examples."""
    too_small: int
    """Those of them whose devices cannot hold the model."""
    away: int
    """Those of the others whose devices are never in reach."""
    needed_bytes: float
    """Memory that training takes."""
    largest_bytes: float
    """Memory that the largest device can spare."""

    @classmethod
    def of(
        cls, sizes_N: np.ndarray, memory_bytes_N: np.ndarray, needed_bytes: float, in_reach_N: np.ndarray | None = None
    ) -> Drawable:
        """Count; without ``in_reach_N`` all are in reach some time."""
        holding_N = np.asarray(sizes_N) > 0
        small_N = holding_N & (memory_bytes_N < needed_bytes)
        away = 0 if in_reach_N is None else int((holding_N & ~small_N & ~in_reach_N).sum())
        largest = float(memory_bytes_N.max(initial=0.0))
        return cls(int(holding_N.sum()), int(small_N.sum()), away, needed_bytes, largest)

    @property
    def able(self) -> int:
        """Clients that can be drawn."""
        return self.holding - self.too_small - self.away

    @property
    def reasons(self) -> list[str]:
        """Why others cannot be drawn, a clause for each reason."""
        found = []
        if self.too_small:
            found.append(
                f"the devices of {self.too_small} cannot hold the model, which needs {self.needed_bytes / GIGABYTE:,.4g} GB "
                f"(world.devices.needed_gigabytes), where the largest device spares {self.largest_bytes / GIGABYTE:,.4g} GB"
            )
        if self.away:
            found.append(f"those of {self.away} are never in reach")
        return found


def check_enough(sampling: SamplingConfig, world: WorldConfig, buffer: BufferConfig | None, clients: Drawable) -> None:
    """Refuse rounds, or buffered steps, that want more clients than can be drawn.

    Parameters
    ----------
    sampling
        With as many ``clients_per_round`` as a server step takes in.

    Raises
    ------
    ConfigError
        Naming the key, how many there are, and why others cannot be drawn.
    """
    wanted = sampling.clients_per_round if buffer is None else buffer.concurrency
    key = "sampling.clients_per_round" if buffer is None else "buffer.concurrency"
    if wanted > clients.able:
        raise ConfigError(_too_many(key, wanted, clients))
    drawn = math.ceil(wanted * (1.0 + world.over_selection))
    if drawn > clients.able:
        right = math.floor(100 * (clients.able / wanted - 1)) / 100
        raise ConfigError(
            f"world.over_selection={world.over_selection:g} draws {drawn} clients for a round of {wanted}, but only "
            f"{clients.able} can be drawn; set world.over_selection={right:g} or less"
        )
    if sampling.kind == "tiers" and clients.able // sampling.tiers < wanted:
        raise ConfigError(
            f"sampling.tiers={sampling.tiers} makes tiers of {clients.able // sampling.tiers} of the {clients.able} clients "
            f"that can be drawn, but {wanted} are drawn for a round; set sampling.tiers or sampling.clients_per_round lower"
        )


def _too_many(key: str, wanted: int, clients: Drawable) -> str:
    found = f"only {clients.able}" if clients.able else "none"
    why = f": {', and '.join(clients.reasons)}" if clients.reasons else ""
    fewer = f"set {key}={clients.able} or less" if clients.able else ""
    other = "give other devices" if clients.reasons else "raise partition.clients"
    right = ", or ".join(filter(None, (fewer, other)))
    return f"{key} is {wanted}, but of the {clients.holding} clients with training examples {found} can be drawn{why}; {right}"
