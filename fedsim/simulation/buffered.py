"""Buffered asynchronous rounds on the driver: a round is a server step, and takes in clients that began from earlier states.

Real work does not follow the virtual clock. When a step needs a client that has not trained, all clients that have begun by
then train in one call, whatever their virtual times; their sums wait at the server, and their reports and new states here,
until the step that takes them in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from fedsim.configuration.schema import Config
from fedsim.core.messages import WorkGroup
from fedsim.executors.base import EvaluatedShard, Executor, Handle, TrainedGroup
from fedsim.simulation.round import Draw, Round
from fedsim.world.buffered import BufferedSchedule
from fedsim.world.enough import check_enough
from fedsim.world.schedule import Step
from fedsim.world.visit_times import DelayedDevices, EqualDevices, VisitTimes
from server.core import StepReport


def buffered_schedule(config: Config, draw: Draw) -> BufferedSchedule:
    """Return who begins when, and which step takes in whom, in a run with section ``buffer``."""
    assert config.buffer is not None
    delay, able_N = draw.sampling.delay, draw.sizes_N > 0
    times: VisitTimes = EqualDevices(able_N) if draw.devices is None else draw.devices
    if draw.devices is not None:
        check_enough(draw.sampling, config.world, config.buffer, draw.devices.drawable)
    if delay.seconds_per_example:
        times = DelayedDevices(able_N, delay, config.seed, draw.work_N)
    has_clock = draw.devices is not None or delay.seconds_per_example > 0
    return BufferedSchedule(config.buffer, draw.sampling, config.seed, draw.sizes_N, times, has_clock=has_clock)


def needs_training(schedule: BufferedSchedule, number: int, trained: int) -> bool:
    """Whether a step takes in clients that began from versions after ``trained``, up to which all have trained."""
    return any(visit.version > trained for visit in schedule.step(number).visits)


def begun(schedule: BufferedSchedule, number: int, last: int, trained: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the clients that have begun before a step and have not trained: the step that takes them in, their version, ids.

    Parameters
    ----------
    last
        Server steps of the run; clients that no step of these takes in are left out.
    trained
        All clients have trained that began from versions up to this.
    """
    for step in schedule.known(number, last):
        for version in sorted({visit.version for visit in step.visits if visit.version > trained}):
            yield step.number, version, [visit.client for visit in step.visits if visit.version == version]


class Buffered:
    """What lasts from step to step: states from which clients have begun, and the results of those who wait for their step.

    All of it follows from the server's state: after :meth:`restart`, clients that had begun train again, to the same bits.

    Parameters
    ----------
    schedule
        Who begins when, and which step takes in whom.
    last
        Server steps of the run; clients that no step of these takes in need not train.
    """

    def __init__(self, schedule: BufferedSchedule, draw: Draw, executor: Executor, last: int) -> None:
        self._schedule, self._draw, self._executor, self._last = schedule, draw, executor, last
        self._states: dict[int, Handle] = {}
        self._trained = -1
        """All clients have trained that began from versions up to this."""
        self._held: dict[int, list[TrainedGroup]] = {}

    @classmethod
    def of(cls, config: Config, draw: Draw, executor: Executor) -> Buffered:
        """Return the state of a run with section ``buffer`` before its first step."""
        return cls(buffered_schedule(config, draw), draw, executor, config.rounds)

    def first_group(self) -> tuple[int, ...]:
        """Return the largest work group of the clients that begin from the initial state; of several, the first."""
        return max((group.clients for group in self._groups(0)), key=len)

    def restart(self, done: int, state: Handle) -> None:
        """Begin, or begin again, after ``done`` server steps; ``state`` is what the next one starts from."""
        self._held, self._trained = {}, -1
        earlier = self._schedule.step(done - 1).under_way if done else ()
        self._states = {version: self._executor.server.global_state(version) for version in earlier} | {done: state}

    def round(self, number: int, started: float) -> BufferedRound:
        """Return a step's round, ready to train whom it needs."""
        return BufferedRound(number, self, self._executor, started)

    def stepped(self, done: int, state: Handle) -> None:
        """Go on to the state after ``done`` server steps."""
        under_way = self.under_way(done - 1)
        self._states = {version: handle for version, handle in self._states.items() if version in under_way}
        self._states[done] = state
        self._held.pop(done - 1, None)

    # -- for a round -----------------------------------------------------------------------------------------------------

    @property
    def earlier(self) -> Mapping[int, Handle]:
        """The states from which clients have begun, by version."""
        return self._states

    def under_way(self, number: int) -> tuple[int, ...]:
        """Return the versions from which clients have begun that are still to be taken in after a step."""
        return self._schedule.step(number).under_way

    def plan(self, number: int) -> Step:
        """Return whom a step takes in."""
        return self._schedule.step(number)

    def to_train(self, number: int) -> list[WorkGroup]:
        """Return the groups to train before a step: none if all that it takes in have trained, else all that have begun."""
        return self._groups(number) if needs_training(self._schedule, number, self._trained) else []

    def _groups(self, number: int) -> list[WorkGroup]:
        """Cut the untrained clients into groups, apart by the step that takes them in and the version they begin from."""
        groups: list[WorkGroup] = []
        for step, version, order in begun(self._schedule, number, self._last, self._trained):
            groups += self._executor.groups(version, order, self._draw.group_size, self._draw.work_N, step)
        return groups

    def hold(self, trained: TrainedGroup) -> None:
        """Hold a group's results until its step."""
        self._held.setdefault(trained.group.taken_in, []).append(trained)

    def all_trained(self, number: int) -> None:
        """Note that all clients have trained that have begun before a step."""
        self._trained = number

    def of_step(self, number: int) -> Sequence[TrainedGroup]:
        """Return the results that a step takes in."""
        return self._held.get(number, ())


class BufferedRound(Round):
    """A server step and the training that it needs."""

    def __init__(self, number: int, buffered: Buffered, executor: Executor, started: float) -> None:
        self.number = number
        self.started = self.trained_at = started
        self.plan = buffered.plan(number)
        self.groups = buffered.to_train(number)
        self._buffered, self._executor = buffered, executor

    def train(
        self,
        state: Handle,
        client_states: Mapping[int, Handle],
        shards: Sequence[tuple[int, int]] = (),
        *,
        evaluate_first: bool = False,
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        """Train all clients that have begun if the step needs any of them; see :meth:`Round.train`."""
        self.trained_at = time.monotonic()
        earlier = self._buffered.earlier
        for result in self._executor.train(
            self.groups, state, client_states, shards, evaluate_first=evaluate_first, earlier=earlier
        ):
            if isinstance(result, TrainedGroup):
                self._buffered.hold(result)
                self.trained_at = time.monotonic()
            yield result
        if self.groups:
            self._buffered.all_trained(self.number)

    def trained(self) -> list[TrainedGroup]:
        """Return the groups that the step takes in, by version and in the order of their numbers."""
        groups = self._buffered.of_step(self.number)
        return sorted(groups, key=lambda each: (each.group.round, each.group.group, each.group.part))

    def step(self) -> StepReport:
        """Apply the groups' updates to the server, which keeps the states from which other clients have begun."""
        keep = self._buffered.under_way(self.number)
        return self._executor.server.apply(self.number, self.plan.clients, keep=keep)
