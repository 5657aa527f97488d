"""What a point's rounds are before they run: the work of each, and its time on the virtual clock.

Both follow from the config and the seed, and nothing is trained for them: the schedule of the run itself is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.scaling.cost_model import Work, busiest
from fedsim.simulation.buffered import begun, needs_training, schedule_of
from server.sampling import cut

if TYPE_CHECKING:
    from clients.spec import WorkerSpec
    from fedsim.configuration.schema import Config
    from fedsim.core.layout import VectorLayout
    from fedsim.simulation.round import Draw
    from fedsim.world.devices import Devices
    from fedsim.world.schedule import Step

LEARNED = ("oort", "power_of_choice")
"""Values of ``sampling.kind`` that draw by losses, which training alone gives."""


@dataclass(frozen=True)
class Planned:
    """The rounds of a run, or the server steps of a buffered one."""

    loads: tuple[tuple[int, ...], ...]
    """By round: the training examples of each work group that is trained in it."""
    cohorts: tuple[int, ...]
    """By round: clients that it takes in."""
    simulated: tuple[float | None, ...]
    """By round: seconds on the virtual clock; None without one."""

    @classmethod
    def of(cls, config: Config, draw: Draw) -> Planned:
        """Follow the schedule of a run."""
        rounds = list(_rounds(config, draw))
        loads = tuple(tuple(int(draw.work_N[list(group)].sum()) for group in groups) for _, groups in rounds)
        return cls(loads, tuple(len(step.visits) for step, _ in rounds), tuple(step.seconds for step, _ in rounds))

    def work(self, rounds: Sequence[int], actors: int) -> Work:
        """Return the work of rounds, counted from 0, on a number of actors."""
        most = [busiest(self.loads[round], actors) for round in rounds]
        return Work(
            groups=float(np.mean([groups for groups, _ in most])),
            examples=float(np.mean([examples for _, examples in most])),
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
    schedule, trained = schedule_of(config, draw), -1
    for number in range(config.rounds):
        groups: list[tuple[int, ...]] = []
        if needs_training(schedule, number, trained):
            for _, _, order in begun(schedule, number, config.rounds, trained):
                groups += cut(order, draw.group_size, draw.work_N)
            trained = number
        yield schedule.step(number), groups


class Plans:
    """Plans of configs that differ in their clients, cohorts and actors; data, tokens and weights are read once."""

    def __init__(self) -> None:
        self._sizes: dict[str, Any] = {}
        self._model: tuple[WorkerSpec, VectorLayout] | None = None

    def of(self, config: Config, layers: tuple[int, ...] = ()) -> Planned:
        """Return the plan of a config; ``layers`` are those that it exchanges, for simulated devices."""
        return Planned.of(config, self.draw(config, layers))

    def draw(self, config: Config, layers: tuple[int, ...] = ()) -> Draw:
        """Return what draws the clients of each round."""
        from fedsim.simulation.round import Draw

        if config.world.devices is not None:
            devices = self._devices(config, layers)
            return Draw.of(config, devices.sizes_N, devices)
        key = f"{config.seed} {config.partition!r} {config.data!r}"
        if key not in self._sizes:
            from fedsim.simulation.preparation import partition_data

            self._sizes[key] = partition_data(config).shards.train_sizes
        return Draw.of(config, self._sizes[key])

    def _devices(self, config: Config, layers: tuple[int, ...]) -> Devices:
        """Return the devices of a run, as it makes them before its first round."""
        from dataclasses import replace

        from fedsim.simulation.fleet import devices_of
        from fedsim.simulation.preparation import make_spec, partition_data
        from fedsim.world.traces.read import read_recorded

        data = partition_data(config)
        if self._model is None:
            spec, _ = make_spec(config, data)
            self._model = spec, spec.build("cpu").info().full
        spec, full = self._model
        found = devices_of(config, replace(spec, shards=data.shards), full, layers, read_recorded(config.world))
        assert found is not None
        return found
