"""Laws of the schedule of buffered rounds, whatever the devices."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core import seeds
from fedsim.core.errors import ConfigError
from fedsim.world.buffer_config import BufferConfig
from fedsim.world.buffered import BufferedSchedule
from fedsim.world.visit_times import DelayedDevices, EqualDevices
from server.config import DelayConfig, SamplingConfig
from server.sampling import cohort

KINDS = ("uniform", "by_size", "round_robin")


@dataclass
class Devices:
    """Devices whose visits take whole numbers of seconds, so that many end together, and that come and go."""

    seed: int
    speeds_N: np.ndarray
    on: int = 0
    """Seconds in reach of every ten; 0 for always."""
    able_N: np.ndarray = field(init=False)

    def __post_init__(self):
        self.able_N = np.ones(len(self.speeds_N), dtype=bool)

    def reach_N(self, seconds):
        clients_N = np.arange(len(self.speeds_N))
        if not self.on:
            return np.full(len(clients_N), seconds), np.full(len(clients_N), np.inf)
        begins_N = (
            seconds - clients_N
        ) // 10 * 10 + clients_N  # a client's interval begins at its number, then every 10 s
        begins_N = np.where(begins_N + self.on <= seconds, begins_N + 10, begins_N)
        return np.maximum(begins_N, seconds), (begins_N + self.on).astype(float)

    def seconds(self, client, round, *, last=None):
        own = int(seeds.stream(self.seed, round, client, "own").integers(1, 4))
        return float(self.speeds_N[client] * own)


@st.composite
def worlds(draw):
    """Return a schedule, its buffer and the number of clients."""
    clients = draw(st.integers(2, 14))
    size = draw(st.integers(1, clients))
    buffer = BufferConfig(
        size=size, concurrency=draw(st.integers(size, clients)), max_staleness=draw(st.sampled_from([None, 0, 2, 5]))
    )
    seed = draw(st.integers(0, 99))
    speeds_N = np.array(draw(st.lists(st.sampled_from([1, 1, 2, 20]), min_size=clients, max_size=clients)))
    devices = Devices(seed, speeds_N if not (on := draw(st.sampled_from([0, 0, 7]))) else np.ones(clients), on)
    sampling = SamplingConfig(kind=draw(st.sampled_from(KINDS)), clients_per_round=1)
    sizes_N = np.arange(1, clients + 1)
    make = lambda: BufferedSchedule(buffer, sampling, seed, sizes_N, devices)  # noqa: E731
    return make, buffer, clients, on


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_what_holds_in_every_schedule(world):
    make, buffer, clients, on = world
    schedule, steps = make(), 25
    taken = [schedule.step(number) for number in range(steps)]
    visits = [visit for step in taken for visit in step.visits]
    assert all(len(step.visits) == buffer.size for step in taken)
    assert all(len(set(step.clients)) == buffer.size for step in taken)  # no client twice in a step
    assert len({(visit.client, visit.version) for visit in visits}) == len(visits)  # none twice from a version
    for client in range(clients):  # none twice at a time: it begins from a state that has its last change
        own = [(visit, step) for step in taken for visit in step.visits if visit.client == client]
        assert all(after.version > step.number for (_, step), (after, _) in pairwise(own))
    for step in taken:
        assert all(visit.began_seconds < visit.arrived_seconds <= step.ended_seconds for visit in step.visits)
        assert max(visit.arrived_seconds for visit in step.visits) == step.ended_seconds
        limit = buffer.max_staleness
        assert limit is None or all(step.number - visit.version <= limit for visit in step.visits)
        assert bool(step.late) <= (limit is not None) and bool(step.absent) <= bool(on)
    assert all(before.ended_seconds == after.began_seconds for before, after in pairwise(taken))
    arrivals = [[visit.arrived_seconds for visit in step.visits] for step in taken]
    assert all(max(before) <= min(after) for before, after in pairwise(arrivals))


@settings(max_examples=30, deadline=None)
@given(worlds(), st.permutations(range(12)))
def test_steps_do_not_depend_on_the_order_in_which_they_are_asked_for(world, order):
    make = world[0]
    forwards, jumping = make(), make()
    assert [forwards.step(number) for number in range(12)] == [
        step for _, step in sorted((number, jumping.step(number)) for number in order)
    ]


@settings(max_examples=60, deadline=None)
@given(worlds(), st.integers(0, 12))
def test_whoever_has_begun_is_known_and_taken_in_once(world, first):
    make, last = world[0], 20
    schedule, reference = make(), make()
    known = Counter(
        (step.number, visit.client, visit.version) for step in schedule.known(first, last) for visit in step.visits
    )
    expected = {
        (number, visit.client, visit.version)
        for number in range(first, last)
        for visit in reference.step(number).visits
        if visit.version <= first
    }
    assert set(known) == expected and set(known.values()) <= {1}
    for number in range(last - 1):  # what a later step takes in from before is under way
        later = {v.version for n in range(number + 1, last) for v in reference.step(n).visits if v.version <= number}
        assert later <= set(reference.step(number).under_way)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_devices_that_fill_the_buffer_together_make_synchronous_rounds(kind):
    sampling, sizes_N = SamplingConfig(kind=kind, clients_per_round=5), np.array([3, 0, 1, 7, 4, 2, 9, 5])
    schedule = BufferedSchedule(
        BufferConfig(size=5, concurrency=5), sampling, 7, sizes_N, EqualDevices(sizes_N > 0), has_clock=False
    )
    for number in range(6):
        step = schedule.step(number)
        assert list(step.clients) == cohort(sampling, 7, number, sizes_N).tolist()
        assert {visit.version for visit in step.visits} == {number}
        assert (step.seconds, step.under_way, step.visits[0].began_seconds) == (None, (), None)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 6), st.integers(0, 4), st.integers(0, 99))
def test_as_many_train_at_a_time_as_should(size, more, spare, seed):
    """All clients that are not in the buffer, where these are fewer."""
    concurrency = size + more
    clients = concurrency + spare
    devices = Devices(seed, np.array([(1, 1, 2, 20)[n % 4] for n in range(clients)]))
    buffer, sampling = BufferConfig(size=size, concurrency=concurrency), SamplingConfig(clients_per_round=1)
    schedule = BufferedSchedule(buffer, sampling, seed, np.ones(clients), devices)
    steps = [schedule.step(number) for number in range(6)]
    last = steps[-1].ended_seconds
    while (
        schedule.step(len(steps)).began_seconds <= last + 60
    ):  # until whoever had begun has arrived: 20 x 3 seconds at most
        steps.append(schedule.step(len(steps)))
    visits = [(visit, step) for step in steps for visit in step.visits]
    for moment in {visit.arrived_seconds for visit, _ in visits if visit.arrived_seconds <= last}:
        flying = sum(visit.began_seconds <= moment < visit.arrived_seconds for visit, _ in visits)
        waiting = sum(visit.arrived_seconds <= moment < step.ended_seconds for visit, step in visits)
        assert flying == min(concurrency, clients - waiting)


def test_slow_clients_arrive_stale():
    sizes_N = np.ones(30, dtype=int)
    times = DelayedDevices(sizes_N > 0, DelayConfig(seconds_per_example=1.0, device_spread=1.5), 3, sizes_N)
    sampling, buffer = SamplingConfig(clients_per_round=1), BufferConfig(size=2, concurrency=10)
    schedule = BufferedSchedule(buffer, sampling, 3, sizes_N, times)
    visits = [(visit, number - visit.version) for number in range(40) for visit in schedule.step(number).visits]
    seconds = [visit.arrived_seconds - visit.began_seconds for visit, _ in visits]
    stale = [visit.arrived_seconds - visit.began_seconds for visit, staleness in visits if staleness >= 10]
    assert stale and min(stale) > np.median(seconds)


def test_too_few_clients_are_refused():
    sizes_N = np.array([1, 0, 1, 0])
    with pytest.raises(ConfigError, match=r"buffer\.concurrency is 3, but only 2 clients can be drawn"):
        BufferedSchedule(BufferConfig(size=1, concurrency=3), SamplingConfig(), 0, sizes_N, EqualDevices(sizes_N > 0))
