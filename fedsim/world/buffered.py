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
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.core import seeds
from fedsim.core.errors import ConfigError
from fedsim.world.buffer_config import BufferConfig
from fedsim.world.schedule import Step, Visit
from fedsim.world.visit_times import VisitTimes
from server.config import SamplingConfig
from server.sampling import cohort


@dataclass(frozen=True)
class BufferedStep(Step):
    """A server step of buffered rounds."""

    under_way: tuple[int, ...] = ()
    """Versions from which clients have begun that this step and those before it do not take in, ascending."""


@dataclass(frozen=True)
class _Journey:
    """A visit on its way; ordered as events are: by when it ends, then by the number of the draw."""

    ends: float
    number: int
    visit: Visit
    lost: bool

    def __lt__(self, other: _Journey) -> bool:
        return (self.ends, self.number) < (other.ends, other.number)


class BufferedSchedule:
    """Visits and steps, worked out as far as they are asked for and remembered.

    At equal times clients arrive in the order in which they were drawn, a full buffer makes a step at once, and clients are
    drawn last, from the newest version. A client is free to be drawn while it neither trains nor waits in the buffer, so no
    step takes in a client twice, and a client begins from what its last visit left behind. A client that goes out of reach
    before its result has arrived is lost to the step that comes next, as absent, and replaced.

    Parameters
    ----------
    seed
        The run's root seed.
    sizes_N
        Training examples of each client.
    times
        How long visits take, and when clients are in reach.
    has_clock
        Whether these times are those of simulated devices, to be told in visits and steps.

    Raises
    ------
    ConfigError
        If fewer clients can be drawn than are to train at a time.
    """

    def __init__(
        self,
        buffer: BufferConfig,
        sampling: SamplingConfig,
        seed: int,
        sizes_N: np.ndarray,
        times: VisitTimes,
        *,
        has_clock: bool = True,
    ) -> None:
        self._buffer, self._times, self._has_clock = buffer, times, has_clock
        self._free_N = (np.asarray(sizes_N) > 0) & times.able_N
        if (able := int(self._free_N.sum())) < buffer.concurrency:
            raise ConfigError(
                f"buffer.concurrency is {buffer.concurrency}, but only {able} clients can be drawn; set "
                f"buffer.concurrency={max(1, able)} or less, or raise partition.clients"
            )
        self._draws = _Draws(sampling, seed, np.where(self._free_N, sizes_N, 0))
        self._steps: list[BufferedStep] = []
        self._flying: list[_Journey] = []
        """A heap of the visits under way."""
        self._waiting: list[_Journey] = []
        """The buffer."""
        self._aside = _Aside()
        self._under_way: Counter[int] = Counter()
        """Visits that no step has taken in, by version."""
        self._last: dict[int, int] = {}
        """The version from which each client's last visit began."""
        self._drawn = 0
        self._seconds = 0.0
        self._draw()

    def step(self, number: int) -> BufferedStep:
        """See :meth:`fedsim.world.schedule.Schedule.step`."""
        while len(self._steps) <= number:
            self._advance()
        return self._steps[number]

    def known(self, first: int, last: int) -> Iterator[BufferedStep]:
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
        """Follow the clock to the next time at which a visit ends or a client that is wanted comes in reach."""
        self._seconds = min(self._flying[0].ends if self._flying else math.inf, self._opens)
        while self._flying and self._flying[0].ends == self._seconds:
            self._end(heapq.heappop(self._flying))
        self._draw()

    def _end(self, journey: _Journey) -> None:
        client, limit = journey.visit.client, self._buffer.max_staleness
        if journey.lost:
            self._aside.absent.append(replace(journey.visit, outcome="absent"))
            self._leave(journey)
            self._aside.check(len(self._free_N))
            return
        if limit is not None and len(self._steps) - journey.visit.version > limit:
            self._aside.late.append(replace(journey.visit, outcome="late"))
            self._leave(journey)
            return
        self._last[client] = journey.visit.version
        self._waiting.append(journey)
        if len(self._waiting) == self._buffer.size:
            self._take_in()

    def _take_in(self) -> None:
        for journey in self._waiting:
            self._leave(journey)
        aside, self._aside = self._aside, _Aside()
        began = self._steps[-1].ended_seconds or 0.0 if self._steps else 0.0
        timed = {"began_seconds": began, "ended_seconds": self._seconds, "seconds": self._seconds - began}
        self._steps.append(
            BufferedStep(
                number=len(self._steps),
                visits=tuple(journey.visit for journey in sorted(self._waiting, key=lambda each: each.number)),
                absent=tuple(visit.client for visit in aside.absent),
                late=tuple(visit.client for visit in aside.late),
                aside=(*aside.absent, *aside.late),
                too_small=tuple(getattr(self._times, "too_small", ())),
                under_way=tuple(sorted(self._under_way)),
                **(timed if self._has_clock else {}),
            )
        )
        self._waiting = []

    def _leave(self, journey: _Journey) -> None:
        visit = journey.visit
        self._free_N[visit.client] = True
        self._under_way[visit.version] -= 1
        if not self._under_way[visit.version]:
            del self._under_way[visit.version]

    def _draw(self) -> None:
        """Have clients in reach begin, so that as many train as should, or all that are free."""
        starts_N, leaves_N = self._times.reach_N(self._seconds)
        here_N = self._free_N & (starts_N <= self._seconds)
        wanted = self._buffer.concurrency - len(self._flying)
        many = min(wanted, int(here_N.sum()))
        version = len(self._steps)
        for client in self._draws.draw(version, many, here_N):
            last = self._last.get(client)
            arrives = self._seconds + self._times.seconds(client, version, last=last)
            leaves = float(leaves_N[client])
            ends = min(arrives, leaves)
            now, until = (self._seconds, ends) if self._has_clock else (None, None)
            visit = Visit(client, version, now, until, now, None if last is None else version - last)
            heapq.heappush(self._flying, _Journey(ends, self._drawn, visit, leaves < arrives))
            self._free_N[client] = False
            self._under_way[version] += 1
            self._drawn += 1
        away_N = self._free_N & (starts_N > self._seconds)
        self._opens = float(starts_N[away_N].min()) if many < wanted and away_N.any() else math.inf


@dataclass
class _Aside:
    """Clients whose visits ended since the last step and are in none."""

    absent: list[Visit] = field(default_factory=list)
    late: list[Visit] = field(default_factory=list)

    def check(self, clients: int) -> None:
        """Refuse to go on where no result ever arrives.

        Raises
        ------
        ConfigError
            If far more visits than there are clients went out of reach one after another.
        """
        if len(self.absent) > max(10_000, 10 * clients):
            raise ConfigError(
                f"{len(self.absent)} clients one after another went out of reach before their result had arrived; give devices "
                "that are faster or longer in reach (world.devices), or smaller work (client.epochs, client.steps)"
            )


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
