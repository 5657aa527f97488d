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
    last: dict[int, int] = field(default_factory=dict)
    """The step of each client's last visit, from which it has a frozen-layer cache and that step's state."""
    steps: dict[int, Step] = field(default_factory=dict)


@dataclass(frozen=True)
class _Journey:
    """A client that was drawn: when it begins, and when its result arrives or it is lost."""

    client: int
    drawn: float
    began: float
    ends: float
    lost: bool
    missed: int | None

    def visit(self, number: int, outcome: Literal["taken", "late", "absent"]) -> Visit:
        """Return what became of it in a step."""
        return Visit(self.client, number, self.began, self.ends, self.drawn, self.missed, outcome)


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
        lost: list[_Journey] = []
        tried: set[int] = set()
        opened, waited = began, 0.0
        for _ in range(_TRIES):  # until a result arrives
            drawn = self._drawn(number, opened, tried)
            last = max(journey.began for journey in drawn)
            taken, late, ended = self._taken(drawn, last)
            waited, opened = waited + min(last, ended) - opened, ended
            lost += [journey for journey in drawn if journey.lost and journey not in late]
            tried |= {journey.client for journey in drawn}
            if taken:
                break
        else:
            raise ConfigError(
                f"round {number + 1}: in {_TRIES} draws no client's result has arrived before it went out of reach; give "
                "devices that are faster or longer in reach (world.devices), or less work (client.epochs, client.steps)"
            )
        visits = tuple(each.visit(number, "taken") for each in taken)
        aside = tuple(each.visit(number, "absent") for each in lost) + tuple(
            each.visit(number, "late") for each in late
        )
        left_out = tuple(each.client for each in late)
        absent = {each.client for each in lost} - {each.client for each in (*taken, *late)}
        self._clock.last.update({each.client: number for each in taken})
        rest = self._devices.too_small, began, opened, waited, opened - began, aside
        return Step(number, visits, tuple(sorted(absent)), left_out, *rest)

    def _drawn(self, number: int, now: float, tried: set[int]) -> list[_Journey]:
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
        order = [int(client) for client in self._selection.draw(number, many, here_N, self.losses)]
        if len(order) < many:
            coming = np.flatnonzero(pool_N & ~here_N)
            coming = coming[np.argsort(starts_N[coming], kind="stable")]
            order += [int(client) for client in coming[: many - len(order)]]
        gone = set(in_reach(order, sampling.dropout, self._seed, number)[1])
        journeys = []
        for client in order:
            began, leaves = float(starts_N[client]), float(ends_N[client])
            last = self._clock.last.get(client)
            arrives = began + devices.seconds(client, number, last=last)
            leaves = began if client in gone else leaves
            missed = None if last is None else number - last
            journeys.append(_Journey(client, now, began, min(arrives, leaves), leaves < arrives, missed))
        return journeys

    def _taken(self, drawn: list[_Journey], last: float) -> tuple[list[_Journey], list[_Journey], float]:
        """Return the clients that the step takes, those that it does not wait for, and when it ends.

        It takes the first answers up to a cohort, at least one, and none behind the deadline.
        """
        deadline = last + (self._world.deadline_seconds or math.inf)
        arriving = sorted((each for each in drawn if not each.lost), key=lambda each: each.ends)
        if not arriving:
            return [], [], max(each.ends for each in drawn)
        first = arriving[: self._sampling.clients_per_round]
        chosen = [each for each in first if each.ends <= deadline] or first[:1]
        ends = chosen[-1].ends
        if len(chosen) < self._sampling.clients_per_round:  # it waits for all that may still come
            ends = max(ends, min(deadline, max(each.ends for each in drawn)))
        taken = [each for each in drawn if each in chosen]
        return taken, [each for each in drawn if each not in taken and (not each.lost or each.ends > ends)], ends
