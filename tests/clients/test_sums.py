"""The sums of a group are those of the plain formula in float64, bit by bit, for every option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.training.sums import BLOCK, GroupSums
from fedsim.core.messages import VECTOR, ClientReport, GroupUpdate, WorkGroup
from fedsim.core.method import ClientRound, Correction, Method
from fedsim.methods.control import AFTER, CHANGE, CONTROL, ControlVariates
from fedsim.methods.preconditioner import Preconditioner


@dataclass(frozen=True)
class Options:
    """Those of :class:`GroupSums`, and of the control variates."""

    uniform_weights: bool = False
    by_steps: bool = False
    before: bool = False
    each_client: bool = False
    each_vector: bool = False

    def method(self, control: bool, metric: bool) -> Method:
        """Return a method whose devices keep control variates and send a common metric, where asked."""
        method = Method()
        mean = "steps" if self.by_steps else "weights"
        variates = (ControlVariates("displacement", mean, self.before, corrects=False),) * control
        method.corrections = (*variates, *(Preconditioner(),) * metric) or (Correction(),)
        method.one_by_one = self.each_client
        return method


@dataclass(frozen=True)
class Trained:
    """What a worker has of a client when it adds it."""

    report: ClientReport
    client: ClientRound

    def arrays(self) -> list[np.ndarray]:
        one = self.client
        return [one.trained_F, *one.old.values(), *one.new.values(), *one.tallies.values()]


def jobs(seed: int, clients: int, positions_F: np.ndarray, size_A: int, dtype: type, control: bool, metric: bool):
    """Return clients with random numbers; the first has no control variate yet, some weigh one, some took no step."""
    rng = np.random.default_rng(seed)
    made = []

    def draw() -> np.ndarray:
        return (rng.normal(size=size_A) * 10.0 ** rng.integers(-4, 5)).astype(dtype)[positions_F]

    for number in range(clients):
        gain_F = np.abs(draw())
        if number % 2:
            gain_F[rng.random(len(gain_F)) < 0.3] = 0.0
        report = ClientReport(number, 0, num_examples=int(rng.integers(1, 4)), num_steps=int(rng.integers(1, 4)))
        client = ClientRound(
            config=None,
            num_examples=report.num_examples,
            num_steps=report.num_steps,
            start_F=draw(),
            old={CONTROL: draw()} if control and number else {},
            vector_F=draw(),
            tallies={"stepped": draw(), "gain": gain_F} if metric else {},
            new={CONTROL: draw()} if control else {},
        )
        made.append(Trained(report, client))
    return made


def sums_of(clients: Sequence[Trained], size: int, options: Options) -> GroupUpdate | None:
    group = WorkGroup(0, 3, tuple(one.report.client for one in clients), part=1)
    control, metric = (any(bool(arrays) for arrays in all_) for all_ in (
        [one.client.new for one in clients], [one.client.tallies for one in clients])
    )  # fmt: skip
    method = options.method(control, metric)
    singles = method.singles(robust=options.each_vector)
    sums = GroupSums(group, size, method.corrections, uniform_weights=options.uniform_weights, singles=singles)
    for one in clients:
        sums.add((one.report, one.client))
    return sums.update()


def plain_sums(clients: Sequence[Trained], size: int, options: Options):
    """Return the sums, formed with whole vectors in float64, and what is sent client by client, as docs/method.md has them."""
    sums: dict[str, np.ndarray] = {}

    def add(name: str, term_F: np.ndarray) -> None:
        sums[name] = sums.get(name, np.zeros(size)) + term_F

    used, afters = [], []
    for one in clients:
        report, client = one.report, one.client
        w = 1.0 if options.uniform_weights else float(report.num_examples)
        P = client.trained_F.astype(np.float64)
        if not client.tallies:
            add(VECTOR, w * P)
        else:
            S, gain = (client.tallies[name].astype(np.float64) for name in ("stepped", "gain"))
            D = np.array([1.0 / entry if entry > 0.0 else 0.0 for entry in gain])
            add(VECTOR, w * (P + S))
            add("metric", w * D)
            add("metric_step", w * D * S)
        if not client.new:
            continue
        after = client.new[CONTROL].astype(np.float64)
        before = client.old[CONTROL].astype(np.float64) if client.old else np.zeros(len(after))
        add(CHANGE, (report.num_steps if options.by_steps else w) * (after - before))
        afters.append(after)
        used.append(before if options.before else after)
        add(CONTROL, w * used[-1])
    each = {}
    if (options.each_client or options.each_vector) and used:
        each[CONTROL] = np.stack(used)
    if options.each_vector:
        each[VECTOR] = np.stack([one.client.trained_F for one in clients])
    if options.each_vector and options.before and used:
        each[AFTER] = np.stack(afters)
    return sums, each


def check(clients: Sequence[Trained], size: int, options: Options) -> GroupUpdate:
    kept = [[array.copy() for array in one.arrays()] for one in clients]
    update = sums_of(clients, size, options)
    sums, each = plain_sums(clients, size, options)
    weights = [1.0 if options.uniform_weights else float(one.report.num_examples) for one in clients]
    assert update is not None
    for found, expected in ((update.sums, sums), (update.each, each)):
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {array.dtype for array in update.sums.values()} == {np.dtype(np.float64)}
    assert (update.weight_sum, update.steps_sum) == (sum(weights), sum(one.report.num_steps for one in clients))
    assert (update.round, update.group, update.part) == (0, 3, 1)
    assert update.clients == tuple(range(len(clients)))
    assert (update.weights_k is None) != (options.each_client or options.each_vector)
    assert update.weights_k is None or update.weights_k.tolist() == weights
    for one, before in zip(clients, kept, strict=True):  # arrays of clients may be shared and read-only
        for array, copy in zip(one.arrays(), before, strict=True):
            np.testing.assert_array_equal(array, copy)
    return update


@given(
    seed=st.integers(0, 2**32 - 1),
    clients=st.integers(1, 4),
    mask=st.lists(st.booleans(), min_size=1, max_size=12).filter(any),
    dtype=st.sampled_from([np.float32, np.float64]),
    control=st.booleans(),
    metric=st.booleans(),
    options=st.builds(Options, *[st.booleans()] * 5),
)
def test_sums_are_those_of_the_plain_formula(seed, clients, mask, dtype, control, metric, options):
    positions_F = np.flatnonzero(mask)
    check(jobs(seed, clients, positions_F, len(mask), dtype, control, metric), len(positions_F), options)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]),
    gap=st.booleans(),
    metric=st.booleans(),
    options=st.builds(Options, *[st.booleans()] * 5),
)
def test_vectors_longer_than_a_block_are_summed_whole(seed, size, gap, metric, options):
    positions_F = np.delete(np.arange(size + 1), size // 2) if gap else np.arange(1, size + 1)
    check(jobs(seed, 2, positions_F, size + 2, np.float32, True, metric), len(positions_F), options)


@pytest.mark.parametrize(
    ("option", "sum_name"),
    [("uniform_weights", VECTOR), ("by_steps", CHANGE), ("before", CONTROL)],
)  # fmt: skip
def test_every_option_matters(option, sum_name):
    positions_F = np.array([0, 2, 3])
    clients = jobs(0, 4, positions_F, 5, np.float32, True, False)
    without, given = (check(clients, len(positions_F), Options(**{option: value})) for value in (False, True))
    assert not np.array_equal(without.sums[sum_name], given.sums[sum_name])


@given(
    seed=st.integers(0, 2**32 - 1),
    weights=st.lists(
        st.sampled_from([1, 2, 7, 1000, 2**28 + 1, 2**29 - 1, 2**29 + 1, 2**40 + 3]), min_size=1, max_size=6
    ),
    sweeps=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    size=st.integers(1, 40),
    block_size=st.integers(1, 41),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_neither_blocks_nor_sweeps_nor_weights_change_a_bit(seed, weights, sweeps, size, block_size, dtype):
    rng = np.random.default_rng(seed)
    vectors = [(rng.normal(size=size) * 10.0 ** rng.integers(-30, 30, size)).astype(dtype) for _ in weights]
    total_F = np.zeros(size)
    for weight, vector_F in zip(weights, vectors, strict=True):
        vector_F.flags.writeable = False  # as arrays from the object store are
        total_F = total_F + float(weight) * vector_F.astype(np.float64)
    clients = [
        (ClientReport(i, 0, weight, 1), ClientRound(None, weight, 1, vector_F, vector_F=vector_F))
        for i, (weight, vector_F) in enumerate(zip(weights, vectors, strict=True))
    ]
    sums = GroupSums(WorkGroup(0, 0, tuple(range(len(clients)))), size, block_size=block_size)
    for sweep in sweeps:
        sums.add(*clients[:sweep])
        del clients[:sweep]
    assert sums.update().sums[VECTOR].tobytes() == total_F.tobytes()


def test_a_group_without_a_usable_client_sends_nothing():
    assert sums_of([], 3, Options()) is None
