"""The sums of a group are those of the plain formula in float64, bit by bit, for every option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.training.local_job import TrainingResult
from clients.training.sums import BLOCK, GroupSums
from fedsim.core.messages import ClientReport, ClientState, GroupUpdate, WorkGroup

NOTHING = np.empty(0, np.float32)
EACH = ("control_kF", "vector_kF", "control_after_kF")
ARRAYS = ("vector_sum_F", "control_delta_sum_F", "control_sum_F", "metric_sum_F", "metric_step_sum_F", *EACH)


@dataclass(frozen=True)
class Options:
    """Those of :class:`GroupSums`."""

    uniform_weights: bool = False
    control_by_steps: bool = False
    control_before: bool = False
    each_client: bool = False
    each_vector: bool = False


@dataclass(frozen=True)
class Visited:
    """What a worker has of a client when it adds it."""

    report: ClientReport
    old: ClientState
    new: ClientState
    result: TrainingResult

    def arrays(self) -> list[np.ndarray]:
        found = (self.old.control_F, self.new.control_F, *vars(self.result).values())
        return [array for array in found if isinstance(array, np.ndarray)]


def jobs(
    seed: int, clients: int, positions_F: np.ndarray, size_A: int, dtype: type, control: bool, metric: bool
) -> list[Visited]:
    """Return clients with random numbers; the first has no control variate yet, some weigh one, some took no step."""
    rng = np.random.default_rng(seed)
    made = []

    def draw(size: int) -> np.ndarray:
        return (rng.normal(size=size) * 10.0 ** rng.integers(-4, 5)).astype(dtype)

    for client in range(clients):
        gain_A = np.abs(draw(size_A))
        if client % 2:
            gain_A[rng.random(size_A) < 0.3] = 0.0
        made.append(
            Visited(
                ClientReport(client, 0, num_examples=int(rng.integers(1, 4)), num_steps=int(rng.integers(1, 4))),
                ClientState(client, control_F=draw(len(positions_F)) if control and client else None),
                ClientState(client, control_F=draw(len(positions_F)) if control else None),
                TrainingResult(draw(size_A), NOTHING, NOTHING, 1, 0.0, 0.0, stepped_A=draw(size_A), gain_A=gain_A)
                if metric
                else TrainingResult(draw(size_A), NOTHING, NOTHING, 1, 0.0, 0.0),
            )
        )
    return made


def sums_of(clients: Sequence[Visited], positions_F: np.ndarray, options: Options) -> GroupUpdate | None:
    group = WorkGroup(0, 3, tuple(visited.report.client for visited in clients), part=1)
    sums = GroupSums(group, positions_F, **vars(options))
    for visited in clients:
        sums.add(visited.report, visited.old, visited.new, visited.result)
    return sums.update()


def plain_sums(clients: Sequence[Visited], positions_F: np.ndarray, options: Options) -> dict[str, np.ndarray]:
    """Return the sums, formed with whole vectors in float64, as ``GroupUpdate`` defines them."""
    sums: dict[str, np.ndarray] = {}

    def add(name: str, term_F: np.ndarray) -> None:
        sums[name] = sums.get(name, np.zeros(len(positions_F))) + term_F

    used, afters = [], []
    for visited in clients:
        report, result = visited.report, visited.result
        w = 1.0 if options.uniform_weights else float(report.num_examples)
        P = result.vector_A.astype(np.float64)[positions_F]
        if result.gain_A is None:
            add("vector_sum_F", w * P)
        else:
            S, gain = (array.astype(np.float64)[positions_F] for array in (result.stepped_A, result.gain_A))
            D = np.array([1.0 / entry if entry > 0.0 else 0.0 for entry in gain])
            add("vector_sum_F", w * (P + S))
            add("metric_sum_F", w * D)
            add("metric_step_sum_F", w * D * S)
        if visited.new.control_F is None:
            continue
        after = visited.new.control_F.astype(np.float64)
        before = np.zeros(len(after)) if visited.old.control_F is None else visited.old.control_F.astype(np.float64)
        add("control_delta_sum_F", (report.num_steps if options.control_by_steps else w) * (after - before))
        afters.append(after)
        used.append(before if options.control_before else after)
        add("control_sum_F", w * used[-1])
    if (options.each_client or options.each_vector) and used:
        sums["control_kF"] = np.stack(used)
    if options.each_vector:
        sums["vector_kF"] = np.stack([visited.result.vector_A[positions_F] for visited in clients])
    if options.each_vector and options.control_before and used:
        sums["control_after_kF"] = np.stack(afters)
    return sums


def check(clients: Sequence[Visited], positions_F: np.ndarray, options: Options) -> GroupUpdate:
    kept = [[array.copy() for array in visited.arrays()] for visited in clients]
    update = sums_of(clients, positions_F, options)
    expected = plain_sums(clients, positions_F, options)
    weights = [1.0 if options.uniform_weights else float(visited.report.num_examples) for visited in clients]
    assert update is not None
    for name in ARRAYS:
        found = getattr(update, name)
        assert (found is None) == (name not in expected), name
        if found is not None:
            np.testing.assert_array_equal(found, expected[name], err_msg=name)
            assert name in EACH or found.dtype == np.float64
    assert (update.weight_sum, update.steps_sum) == (sum(weights), sum(v.report.num_steps for v in clients))
    assert (update.round, update.group, update.part) == (0, 3, 1)
    assert update.clients == tuple(range(len(clients)))
    assert (update.weights_k is None) != (options.each_client or options.each_vector)
    assert update.weights_k is None or update.weights_k.tolist() == weights
    for visited, before in zip(clients, kept, strict=True):  # arrays of clients may be shared and read-only
        for array, copy in zip(visited.arrays(), before, strict=True):
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
    check(jobs(seed, clients, positions_F, len(mask), dtype, control, metric), positions_F, options)


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
    check(jobs(seed, 2, positions_F, size + 2, np.float32, True, metric), positions_F, options)


@pytest.mark.parametrize(
    ("option", "sum_name"),
    [("uniform_weights", "vector_sum_F"), ("control_by_steps", "control_delta_sum_F"), ("control_before", "control_sum_F")],
)  # fmt: skip
def test_every_option_matters(option, sum_name):
    positions_F = np.array([0, 2, 3])
    clients = jobs(0, 4, positions_F, 5, np.float32, True, False)
    without, given = (check(clients, positions_F, Options(**{option: value})) for value in (False, True))
    assert not np.array_equal(getattr(without, sum_name), getattr(given, sum_name))


def test_a_group_without_a_usable_client_sends_nothing():
    assert sums_of([], np.arange(3), Options()) is None
