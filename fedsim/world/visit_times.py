"""How long visits take, and when clients are in reach, where no devices are simulated in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from server.availability import training_seconds
from server.config import DelayConfig


class VisitTimes(Protocol):
    """What the schedule asks of the devices: :class:`fedsim.world.devices.Devices`, or one of those below."""

    @property
    def able_N(self) -> np.ndarray:
        """Whether each client can be drawn at all, bool [N]."""
        ...

    def reach_N(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Return when each client is in reach next, from a time on, and until when it then stays so, float64 [N] each."""
        ...

    def seconds(self, client: int, round: int, *, last: int | None = None) -> float:
        """Return how long a visit takes that begins from the state of a round; ``last``: that of the client's last visit."""
        ...


@dataclass(frozen=True)
class EqualDevices:
    """Visits that all take one unit of time, by clients that are always in reach."""

    able_N: np.ndarray

    def reach_N(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Return now, and infinity."""
        return np.full(len(self.able_N), seconds), np.full(len(self.able_N), np.inf)

    def seconds(self, client: int, round: int, *, last: int | None = None) -> float:
        """Return one."""
        return 1.0


@dataclass(frozen=True)
class DelayedDevices(EqualDevices):
    """Visits that take the time of ``sampling.delay``."""

    delay: DelayConfig
    seed: int
    work_N: np.ndarray
    """Training examples that each client processes in a visit."""

    def seconds(self, client: int, round: int, *, last: int | None = None) -> float:
        """Return the time of a synchronous round's client."""
        return training_seconds(self.delay, self.seed, round, client, int(self.work_N[client]))
