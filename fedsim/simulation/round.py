"""One round, as used by the run, its warm-up, and the orchestration benchmarks.

A round: draw the cohort -> cut it into work groups -> train -> the server folds and steps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clients.training.local_job import num_trained
from fedsim.configuration.schema import Config
from fedsim.core.messages import ClientReport
from fedsim.executors.base import EvaluatedShard, Executor, Handle, TrainedGroup
from fedsim.world.config import WorldConfig
from fedsim.world.devices import Devices
from fedsim.world.schedule import Step
from fedsim.world.synchronous import Synchronous
from server.config import SamplingConfig
from server.core import StepReport
from server.sampling import cut


@dataclass(frozen=True)
class Draw:
    """Draws each round's clients from the population and cuts them into work groups; the same whenever it is asked."""

    sampling: SamplingConfig
    seed: int
    group_size: int
    sizes_N: np.ndarray
    """Training examples of each client."""
    work_N: np.ndarray
    """Training examples that each client processes in a round, counting repeats."""
    world: WorldConfig | None = None
    devices: Devices | None = None
    """The clients' devices, if they are simulated."""

    @classmethod
    def of(cls, config: Config, sizes_N: np.ndarray, devices: Devices | None = None) -> Draw:
        """Create from a config, the clients' training sizes and their devices."""
        work_N = np.array([num_trained(config.client, int(size)) for size in sizes_N])
        sampling = config.sampling.model_copy(update={"clients_per_round": config.clients_per_step})
        return cls(sampling, config.seed, config.group_size, sizes_N, work_N, config.world, devices)

    @property
    def able_sizes_N(self) -> np.ndarray:
        """Training examples of each client; 0 for clients that are never drawn."""
        return self.sizes_N if self.devices is None else np.where(self.devices.able_N, self.sizes_N, 0)

    @cached_property
    def schedule(self) -> Synchronous:
        """What happens when."""
        return Synchronous(self.sampling, self.seed, self.sizes_N, self.work_N, self.devices, self.world)

    def step(self, round: int) -> Step:
        """Return the visits of a round, counted from 0, and the clients that it does without."""
        return self.schedule.step(round)

    def first_group(self) -> tuple[int, ...]:
        """Return the first work group of the first cohort that has clients."""
        if self.devices is not None:
            return cut(self.step(0).clients, self.group_size, self.work_N)[0]
        rounds = map(self.schedule.cohort, itertools.count())
        return cut(next(filter(len, rounds)), self.group_size, self.work_N)[0]


class Round:
    """A round under way: :meth:`train`, then :meth:`step`.

    Parameters
    ----------
    number
        Counted from 0.
    executor
        Started executor with a started server.
    started
        Monotonic time at which the round began; now, if not given.

    Attributes
    ----------
    plan
        Who takes part and when.
    groups
        Work groups of the clients that take part.
    trained_at
        Monotonic time at which the last group finished training.
    """

    def __init__(self, number: int, draw: Draw, executor: Executor, started: float | None = None) -> None:
        self.number = number
        self.started = self.trained_at = time.monotonic() if started is None else started
        self.plan = draw.step(number)
        self.groups = executor.groups(number, self.plan.clients, draw.group_size, draw.work_N)
        self._executor = executor
        self._trained: list[TrainedGroup] = []

    @property
    def clients(self) -> int:
        """Number of clients that :meth:`train` trains."""
        return sum(len(group.clients) for group in self.groups)

    def train(
        self,
        state: Handle,
        client_states: Mapping[int, Handle],
        shards: Sequence[tuple[int, int]] = (),
        *,
        evaluate_first: bool = False,
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        """Train the groups from a global state; yield results as in :meth:`fedsim.executors.base.Executor.train`."""
        self.trained_at = time.monotonic()
        for result in self._executor.train(self.groups, state, client_states, shards, evaluate_first=evaluate_first):
            if isinstance(result, TrainedGroup):
                self._trained.append(result)
                self.trained_at = time.monotonic()
            yield result

    def trained(self) -> list[TrainedGroup]:
        """Return the trained groups in the order of their numbers."""
        return sorted(self._trained, key=lambda group: (group.group.group, group.group.part))

    def reports(self) -> list[ClientReport]:
        """Return the reports of all clients that took part, including failed ones, by ascending id.

        Raises
        ------
        RuntimeError
            If some are missing, which is a bug in an executor.
        """
        reports = sorted((report for group in self.trained() for report in group.reports), key=lambda each: each.client)
        asked = sorted(self.plan.clients)
        if [report.client for report in reports] != asked:
            raise RuntimeError(f"round {self.number + 1}: {len(asked)} clients were asked, {len(reports)} reports came")
        return reports

    def step(self) -> StepReport:
        """Apply the groups' updates to the server."""
        return self._executor.server.apply(self.number, self.plan.clients)
