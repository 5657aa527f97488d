"""The schedule of buffered asynchronous rounds: who begins from which version of the state, and which step takes it in.

FedBuff (Nguyen et al. 2022, arXiv 2106.06639) on a virtual clock: ``concurrency`` clients train at a time, and every ``size``
arrivals make a server step. The schedule is a function of the seed and the devices alone. No training is waited for, so it
can be followed as far ahead as one likes, and is the same after a resume.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fedsim.core import seeds
from fedsim.core.errors import ConfigError
from fedsim.world.buffer_config import BufferConfig
from server.config import SamplingConfig
from server.sampling import cohort


class VisitTimes(Protocol):
    """What the schedule asks of the devices."""

    able_N: np.ndarray
    """Whether each client can be drawn at all, bool [N]."""

    def seconds(self, client: int, version: int) -> float:
        """Return how long a client's visit takes that begins from a version of the state."""
        ...


@dataclass(frozen=True)
class Visit:
    """A client's visit: it receives a version of the state, trains, and sends its change."""

    client: int
    version: int
    """Server steps done when it began."""
    began_seconds: float
    arrived_seconds: float


@dataclass(frozen=True)
class Step:
    """A server step."""

    number: int
    """Counted from 0."""
    visits: tuple[Visit, ...]
    """Those that it takes in, in the order in which they were drawn."""
    late: tuple[int, ...]
    """Clients that arrived since the last step, but too stale to be taken in."""
    began_seconds: float
    """Time of the step before it."""
    ended_seconds: float
    under_way: tuple[int, ...]
    """Versions from which clients have begun that have not arrived in time for this step, ascending."""


class BufferedSchedule:
    """Visits and steps, worked out as far as they are asked for and remembered.

    At equal times clients arrive in the order in which they were drawn, a full buffer makes a step at once, and clients are
    drawn last, from the newest version. A client is free to be drawn while it neither trains nor waits in the buffer, so no
    step takes in a client twice, and a client begins from what its last visit left behind.

    Parameters
    ----------
    seed
        The run's root seed.
    sizes_N
        Training examples of each client.
    times
        How long visits take.

    Raises
    ------
    ConfigError
        If fewer clients can be drawn than are to train at a time.
    """

    def __init__(
        self, buffer: BufferConfig, sampling: SamplingConfig, seed: int, sizes_N: np.ndarray, times: VisitTimes
    ) -> None:
        self._buffer = buffer
        self._times = times
        self._free_N = (np.asarray(sizes_N) > 0) & times.able_N
        if (able := int(self._free_N.sum())) < buffer.concurrency:
            raise ConfigError(
                f"buffer.concurrency is {buffer.concurrency}, but only {able} clients can train; set "
                f"buffer.concurrency={able} or less, or raise partition.clients"
            )
        self._draws = _Draws(sampling, seed, np.where(self._free_N, sizes_N, 0))
        self._steps: list[Step] = []
        self._flying: list[tuple[float, int, Visit]] = []
        """A heap of the visits under way, by arrival and then by the number of the draw."""
        self._waiting: list[tuple[int, Visit]] = []
        """The buffer, with the number of each draw."""
        self._late: list[int] = []
        self._under_way: Counter[int] = Counter()
        """Visits that no step has taken in, by version."""
        self._drawn = 0
        self._seconds = 0.0
        self._draw()

    def step(self, number: int) -> Step:
        """Return a server step, counted from 0."""
        while len(self._steps) <= number:
            self._advance()
        return self._steps[number]

    def known(self, first: int, last: int) -> Iterator[Step]:
        """Yield steps with those of their visits that begin from versions up to ``first``; steps without any are left out.

        These are the visits that can train once ``first`` steps are done.

        Parameters
        ----------
        first, last
            The first step, and the one before which to end.
        """
        number = first
        while number < last:
            step = self.step(number)
            if visits := tuple(visit for visit in step.visits if visit.version <= first):
                yield replace(step, visits=visits)
            if not step.under_way or step.under_way[0] > first:
                return
            number += 1

    # -- events --------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Follow the clock to the next time at which clients arrive."""
        self._seconds = self._flying[0][0]
        while self._flying and self._flying[0][0] == self._seconds:
            _, number, visit = heapq.heappop(self._flying)
            self._arrive(number, visit)
        self._draw()

    def _arrive(self, number: int, visit: Visit) -> None:
        limit, version = self._buffer.max_staleness, len(self._steps)
        if limit is not None and version - visit.version > limit:
            self._late.append(visit.client)
            self._leave(visit)
            return
        self._waiting.append((number, visit))
        if len(self._waiting) == self._buffer.size:
            self._take_in()

    def _take_in(self) -> None:
        visits = tuple(visit for _, visit in sorted(self._waiting, key=lambda each: each[0]))
        for visit in visits:
            self._leave(visit)
        late, self._waiting, self._late = tuple(self._late), [], []
        began = self._steps[-1].ended_seconds if self._steps else 0.0
        under_way = tuple(sorted(self._under_way))
        self._steps.append(Step(len(self._steps), visits, late, began, self._seconds, under_way))

    def _leave(self, visit: Visit) -> None:
        self._free_N[visit.client] = True
        self._under_way[visit.version] -= 1
        if not self._under_way[visit.version]:
            del self._under_way[visit.version]

    def _draw(self) -> None:
        """Have new clients begin, so that as many train as should, or all that are free."""
        many = min(self._buffer.concurrency - len(self._flying), int(self._free_N.sum()))
        version = len(self._steps)
        for client in self._draws.draw(version, many, self._free_N):
            arrived = self._seconds + self._times.seconds(client, version)
            if not math.isfinite(arrived):
                raise ConfigError(f"client {client} would never arrive; give its device a speed above 0")
            heapq.heappush(self._flying, (arrived, self._drawn, Visit(client, version, self._seconds, arrived)))
            self._free_N[client] = False
            self._under_way[version] += 1
            self._drawn += 1


class _Draws:
    """Draws free clients, as :func:`server.sampling.cohort` draws a cohort."""

    def __init__(self, sampling: SamplingConfig, seed: int, sizes_N: np.ndarray) -> None:
        self._sampling, self._seed, self._sizes_N = sampling, seed, sizes_N
        self._version, self._number = -1, 0
        self._turns: deque[int] | None = None
        if sampling.kind == "round_robin":
            self._turns = deque(self._cohort(0, int(np.count_nonzero(sizes_N)), sizes_N))

    def draw(self, version: int, many: int, free_N: np.ndarray) -> Sequence[int]:
        """Return ``many`` free clients in the order drawn; a version's first draw is the round's cohort if all are free."""
        if not many:
            return ()
        if self._turns is not None:
            return self._next_in_turn(self._turns, many, free_N)
        self._number = self._number + 1 if version == self._version else 0
        self._version = version
        return self._cohort(version, many, np.where(free_N, self._sizes_N, 0))

    def _cohort(self, version: int, many: int, sizes_N: np.ndarray) -> list[int]:
        config, seed = self._sampling.model_copy(update={"clients_per_round": many}), self._seed
        if self._number:  # another stream for each further draw
            seed = int(seeds.stream(seed, version, seeds.NO_CLIENT, f"draw {self._number}").integers(2**31))
        drawn: list[int] = cohort(config, seed, version, sizes_N).tolist()
        return drawn

    @staticmethod
    def _next_in_turn(turns: deque[int], many: int, free_N: np.ndarray) -> list[int]:
        """Take the first free clients of the turn, which go to its end."""
        drawn: list[int] = []
        for client in turns:
            if len(drawn) == many:
                break
            if free_N[client]:
                drawn.append(client)
        for client in drawn:
            turns.remove(client)
        turns.extend(drawn)
        return drawn
