"""What a point's rounds are before they run: the work of each, and its time on the virtual clock.

Both follow from the config and the seed, and nothing is trained for them: the schedule of the run itself is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedsim.scaling.cost_model import Work, busiest
from fedsim.simulation.buffered import begun, buffered_schedule, needs_training
from server.sampling import cut

if TYPE_CHECKING:
    from clients.spec import WorkerSpec
    from fedsim.configuration.schema import Config
    from fedsim.core.layout import VectorLayout
    from fedsim.simulation.round import Draw
    from fedsim.world.cost import VisitCost
    from fedsim.world.schedule import Step

LEARNED = ("oort", "power_of_choice")
"""Values of ``sampling.kind`` that draw by losses, which training alone gives."""


@dataclass(frozen=True)
class Planned:
    """The rounds of a run, or the server steps of a buffered one."""

    loads: tuple[tuple[float, ...], ...]
    """By round: the work of each group that is trained in it, in tokens through all layers and back."""
    cohorts: tuple[int, ...]
    """By round: clients that it takes in."""
    simulated: tuple[float | None, ...]
    """By round: seconds on the virtual clock; None without one."""

    @classmethod
    def of(cls, config: Config, draw: Draw, cost: VisitCost) -> Planned:
        """Follow the schedule of a run, whose visits have a cost: a client's first one may fill its frozen-layer cache."""
        loads, cohorts, simulated = [], [], []
        seen_N = np.zeros(len(draw.sizes_N), dtype=bool)
        for step, groups in _rounds(config, draw):
            work_N = np.where(seen_N, cost.tokens_N, cost.first_tokens_N)
            loads.append(tuple(float(work_N[list(group)].sum()) for group in groups))
            cohorts.append(len(step.visits))
            simulated.append(step.seconds)
            for group in groups:
                seen_N[list(group)] = True
        return cls(tuple(loads), tuple(cohorts), tuple(simulated))

    def work(self, rounds: Sequence[int], actors: int) -> Work:
        """Return the work of rounds, counted from 0, on a number of actors."""
        most = [busiest(self.loads[round], actors) for round in rounds]
        return Work(
            groups=float(np.mean([groups for groups, _ in most])),
            tokens=float(np.mean([tokens for _, tokens in most])),
            cohort=float(np.mean([self.cohorts[round] for round in rounds])),
            actors=actors,
            calls=float(np.mean([bool(self.loads[round]) for round in rounds])),
        )

    def seconds_simulated(self, rounds: Sequence[int]) -> float | None:
        """Return the mean simulated time of rounds; None without a clock."""
        found = [self.simulated[round] for round in rounds]
        return None if any(each is None for each in found) else float(np.mean([each or 0.0 for each in found]))


def _rounds(config: Config, draw: Draw) -> Iterator[tuple[Step, list[tuple[int, ...]]]]:
    """Yield each round with the work groups that are trained in it."""
    if config.buffer is None:
        for number in range(config.rounds):
            step = draw.step(number)
            yield step, cut(step.clients, draw.group_size, draw.work_N)
        return
    schedule, trained = buffered_schedule(config, draw), -1
    for number in range(config.rounds):
        groups: list[tuple[int, ...]] = []
        if needs_training(schedule, number, trained):
            for _, _, order in begun(schedule, number, config.rounds, trained):
                groups += cut(order, draw.group_size, draw.work_N)
            trained = number
        yield schedule.step(number), groups


class Plans:
    """Plans of configs that differ in their clients, cohorts and actors; tokens and weights are read once."""

    def __init__(self) -> None:
        self._model: tuple[WorkerSpec, VectorLayout] | None = None

    def of(self, config: Config, layers: tuple[int, ...]) -> Planned:
        """Return the plan of a config that exchanges some layers."""
        from fedsim.simulation.fleet import Work as VisitWork
        from fedsim.simulation.fleet import devices_of, visit_cost
        from fedsim.simulation.preparation import make_spec, partition_data
        from fedsim.simulation.round import Draw
        from fedsim.world.traces.read import read_recorded

        data = partition_data(config)
        if self._model is None:
            spec, _ = make_spec(config, data)
            self._model = spec, spec.build("cpu").info().full
        spec, full = replace(self._model[0], shards=data.shards), self._model[1]
        work = VisitWork.of_spec(spec)
        devices = devices_of(config, work, full, layers, read_recorded(config.world))
        cost = visit_cost(config, work, full, layers) if devices is None else devices.cost
        return Planned.of(config, Draw.of(config, spec.train_sizes, devices), cost)
