"""Synchronous rounds on the virtual clock: a cohort is drawn, the server waits for it, then takes its step.

As in Bonawitz et al. (2019) a round selects, then reports: where too few clients are in reach, it waits for the next ones that
are, and each begins as it comes; a deadline counts from the beginning of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.core.errors import ConfigError
from fedsim.core.messages import ClientReport
from fedsim.world.config import WorldConfig
from fedsim.world.devices import Devices
from fedsim.world.enough import check_enough
from fedsim.world.schedule import Step, Visit
from fedsim.world.selection import Selection
from fedsim.world.utility import Losses
from server.availability import answers, in_reach
from server.config import SamplingConfig
from server.sampling import cohort

_KEPT = 4
"""Steps that are kept; one before them is found again from the first."""
_TRIES = 200
"""Cohorts that are drawn for a step until a result arrives."""


@dataclass
class _Clock:
    """Where the schedule has got to."""

    number: int = 0
    seconds: float = 0.0
    last_N: np.ndarray | None = None
    """The step of each client's last visit, from which it has a frozen-layer cache and that step's state; -1 for none."""
    steps: dict[int, Step] = field(default_factory=dict)


@dataclass(frozen=True)
class _Drawn:
    """Clients that were drawn, in draw order: when each begins, and when its result arrives or it is lost."""

    drawn_seconds: float
    clients_K: np.ndarray
    began_K: np.ndarray
    ends_K: np.ndarray
    lost_K: np.ndarray
    last_K: np.ndarray
    """The step of each one's last visit; -1 for none."""

    def visits(
        self, chosen_K: np.ndarray, number: int, outcome: Literal["taken", "late", "absent"]
    ) -> tuple[Visit, ...]:
        """Return the visits of some of them, and what became of these in a step."""
        columns = (column[chosen_K].tolist() for column in (self.clients_K, self.began_K, self.ends_K, self.last_K))
        return tuple(
            Visit(client, number, began, ends, self.drawn_seconds, None if last < 0 else number - last, outcome)
            for client, began, ends, last in zip(*columns, strict=True)
        )


class Synchronous:
    """The schedule of synchronous rounds.

    Parameters
    ----------
    work_N
        Training examples that each client processes in a round.
    devices
        The clients' devices; None for rounds without a clock, or with that of ``sampling.delay``.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        seed: int,
        sizes_N: np.ndarray,
        work_N: np.ndarray,
        devices: Devices | None = None,
        world: WorldConfig | None = None,
    ) -> None:
        self._sampling, self._seed, self._sizes_N, self._work_N = sampling, seed, sizes_N, work_N
        self._devices, self._world = devices, world or WorldConfig()
        able_N = sizes_N if devices is None else np.where(devices.able_N, sizes_N, 0)
        self._selection = Selection(sampling, seed, able_N, None if devices is None else devices.seconds_N(0))
        self.losses = Losses()
        self._clock = _Clock()
        if devices is not None:
            check_enough(sampling, self._world, None, devices.drawable)

    def learn(self, number: int, reports: Iterable[ClientReport]) -> None:
        """Take in what the clients of a step reported, if later steps depend on it."""
        if self._sampling.kind in ("oort", "power_of_choice"):
            self.losses.learn(number, reports)

    def step(self, number: int) -> Step:
        """See :meth:`fedsim.world.schedule.Schedule.step`."""
        if self._devices is None and not self._sampling.delay.seconds_per_example:
            return self._without_devices(number, None)
        if number < self._clock.number and number not in self._clock.steps:
            self._clock = _Clock()
        while number not in self._clock.steps:
            self._advance()
        return self._clock.steps[number]

    def cohort(self, number: int) -> list[int]:
        """Return the clients drawn for a step without devices, in draw order."""
        if self._sampling.kind in ("uniform", "by_size", "round_robin"):
            drawn: list[int] = cohort(self._sampling, self._seed, number, self._sizes_N).tolist()
            return drawn
        many = self._sampling.clients_per_round
        return [int(client) for client in self._selection.draw(number, many, self._sizes_N > 0, self.losses)]

    @property
    def _drawn_at_once(self) -> int:
        return math.ceil(self._sampling.clients_per_round * (1.0 + self._world.over_selection))

    # -- one step ----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        clock = self._clock
        step = (self._without_devices if self._devices is None else self._with_devices)(clock.number, clock.seconds)
        clock.steps[clock.number] = step
        clock.steps.pop(clock.number - _KEPT, None)
        clock.number, clock.seconds = clock.number + 1, step.ended_seconds or 0.0

    def _without_devices(self, number: int, began: float | None) -> Step:
        """Simulated dropouts and delays of ``sampling``."""
        found = answers(self._sampling, self.cohort(number), self._seed, number, self._work_N)
        visits = tuple(Visit(client, number) for client in found.in_time)
        ended = None if began is None or found.seconds is None else began + found.seconds
        return Step(number, visits, found.absent, found.late, (), began, ended, None, found.seconds)

    def _with_devices(self, number: int, began: float) -> Step:
        assert self._devices is not None
        lost: set[int] = set()
        aside: tuple[Visit, ...] = ()
        tried: set[int] = set()
        opened, waited = began, 0.0
        for _ in range(_TRIES):  # until a result arrives
            drawn = self._drawn(number, opened, tried)
            last = float(drawn.began_K.max())
            taken_K, late_K, ended = self._taken(drawn, last)
            waited, opened = waited + min(last, ended) - opened, ended
            absent_K = drawn.lost_K & ~late_K
            lost.update(drawn.clients_K[absent_K].tolist())
            aside += drawn.visits(absent_K, number, "absent")
            tried.update(drawn.clients_K.tolist())
            if taken_K.any():
                break
        else:
            raise ConfigError(
                f"round {number + 1}: in {_TRIES} draws no client's result has arrived before it went out of reach; give "
                "devices that are faster or longer in reach (world.devices), or less work (client.epochs, client.steps)"
            )
        taken, late = drawn.clients_K[taken_K], tuple(drawn.clients_K[late_K].tolist())
        lost.difference_update(taken.tolist(), late)
        self._last_N()[taken] = number
        visits = drawn.visits(taken_K, number, "taken")
        aside += drawn.visits(late_K, number, "late")
        rest = self._devices.too_small, began, opened, waited, opened - began, aside
        return Step(number, visits, tuple(sorted(lost)), late, *rest)

    def _drawn(self, number: int, now: float, tried: set[int]) -> _Drawn:
        """Draw a cohort at a time: among the clients in reach, and, where they are too few, the next ones that are."""
        assert self._devices is not None
        devices, sampling = self._devices, self._sampling
        many = self._drawn_at_once
        pool_N = self._selection.pool(number).copy()
        if pool_N[list(tried)].sum() == pool_N.sum():
            tried.clear()
        pool_N[list(tried)] = False
        starts_N, ends_N = devices.reach_N(now)
        here_N = pool_N & (starts_N <= now)
        order_K = self._selection.draw(number, many, here_N, self.losses)
        if len(order_K) < many:
            coming = np.flatnonzero(pool_N & ~here_N)
            coming = coming[np.argsort(starts_N[coming], kind="stable")]
            order_K = np.concatenate([order_K, coming[: many - len(order_K)]])
        began_K, leaves_K, last_K = starts_N[order_K], ends_N[order_K], self._last_N()[order_K]
        if sampling.dropout:
            gone = in_reach(order_K.tolist(), sampling.dropout, self._seed, number)[1]
            leaves_K = np.where(np.isin(order_K, gone), began_K, leaves_K)
        arrives_K = began_K + devices.seconds_K(order_K, number, last_K)
        ends_K = np.minimum(arrives_K, leaves_K)
        return _Drawn(now, order_K, began_K, ends_K, leaves_K < arrives_K, last_K)

    def _last_N(self) -> np.ndarray:
        if self._clock.last_N is None:
            self._clock.last_N = np.full(len(self._sizes_N), -1, dtype=np.int64)
        return self._clock.last_N

    def _taken(self, drawn: _Drawn, last: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Return which clients the step takes, which it does not wait for, and when it ends.

        It takes the first answers up to a cohort, at least one, and none behind the deadline.
        """
        ends_K, wanted = drawn.ends_K, self._sampling.clients_per_round
        taken_K = np.zeros(len(ends_K), dtype=bool)
        deadline = last + (self._world.deadline_seconds or math.inf)
        arriving = np.flatnonzero(~drawn.lost_K)
        if not len(arriving):
            return taken_K, taken_K, float(ends_K.max())
        first = arriving[np.argsort(ends_K[arriving], kind="stable")][:wanted]
        in_time = first[ends_K[first] <= deadline]
        chosen = in_time if len(in_time) else first[:1]
        taken_K[chosen] = True
        ended = float(ends_K[chosen[-1]])
        if len(chosen) < wanted:  # it waits for all that may still come
            ended = max(ended, min(deadline, float(ends_K.max())))
        return taken_K, ~taken_K & (~drawn.lost_K | (ends_K > ended)), ended
