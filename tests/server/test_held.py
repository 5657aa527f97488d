"""Sums of changes that began from several versions of the state: against an oracle in float64, and to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import ClientError
from fedsim.core.messages import VECTOR, GroupUpdate
from fedsim.core.method import METHODS, Method
from server.core import Server
from server.held import Held, combined, rebased, staleness_weight

SIZE = 7


def update(version, clients, vectors, group=0):
    weights = [float(3 + client) for client in clients]
    total_F = np.zeros(SIZE)
    for weight, vector_F in zip(weights, vectors, strict=True):
        total_F = total_F + weight * vector_F
    return GroupUpdate(version, group, 0, tuple(clients), sum(weights), 5 * len(clients), {VECTOR: total_F})


def test_weights_of_staleness():
    assert [staleness_weight(s, 0.5) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert [staleness_weight(s, 0.0) for s in (0, 3, 8)] == [1.0, 1.0, 1.0]
    assert staleness_weight(4, 1.0) == pytest.approx(0.2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 3), st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_the_step_moves_by_the_scaled_changes_over_the_weight_of_all(seed, exponent, staleness):
    """P + sum over clients of s_i w_i (P_i - start of i) / sum of w_i."""
    rng, step = np.random.default_rng(seed), 6
    versions = {step - s: rng.normal(size=SIZE) for s in {0, *staleness}}
    kept = {version: vector_F.astype(np.float32) for version, vector_F in versions.items() if version != step}
    held, expected_F, weight_sum = Held(), np.zeros(SIZE), 0.0
    for client, s in enumerate(staleness):
        start_F = kept.get(step - s, versions[step]).astype(np.float64)
        vector_F = start_F + rng.normal(size=SIZE)
        held.add(step, update(step - s, [client], [vector_F], group=client))
        expected_F += (1 + s) ** -exponent * (3 + client) * (vector_F - start_F)
        weight_sum += 3 + client
    result = combined(held.take(step), step, range(len(staleness)), versions[step], kept, exponent)
    np.testing.assert_allclose(result.vector_F, versions[step] + expected_F / weight_sum, rtol=1e-12, atol=1e-12)
    assert (result.clients, result.round) == (tuple(range(len(staleness))), step)
    assert (result.weight_sum, result.steps_sum) == (weight_sum, 5 * len(staleness))


def test_changes_from_the_current_state_are_summed_as_in_a_synchronous_round():
    rng = np.random.default_rng(0)
    updates = [update(0, (2 * g, 2 * g + 1), rng.normal(size=(2, SIZE)), group=g) for g in range(20)]
    order, start_F = tuple(range(40)), rng.normal(size=SIZE)
    vectors = []
    for exponent in (None, 0.7):
        server = Server(METHODS["fedadam"](), start_F, (0,), 1.0, staleness_exponent=exponent)
        server.fold(0, *updates[:7])
        server.apply(0, order, *updates[7:])
        vectors.append(server.arrays())
    assert all(np.array_equal(vectors[0][name], vectors[1][name]) for name in vectors[0])


def test_a_server_holds_what_later_steps_take_in_and_goes_on_the_same_from_its_arrays():
    """Whatever is held is lost with the server, and comes again from the versions that it has kept."""
    rng = np.random.default_rng(1)
    start_F, moves = rng.normal(size=SIZE).astype(np.float32), rng.normal(size=(6, SIZE))
    begun = {0: (0, 1, 2, 3), 1: (4,), 2: (5,)}
    taken = {0: {0: (0, 1)}, 1: {1: (4,)}, 2: {0: (2, 3), 2: (5,)}}
    keep = {0: (0,), 1: (0,), 2: ()}
    finals = []
    for lost in (False, True):
        server = Server(METHODS["fedavgm"](), start_F, (0,), 1.0, staleness_exponent=0.5)
        states = {}
        for step in range(3):
            if lost and step == 2:
                arrays = server.arrays()
                server = Server(METHODS["fedavgm"](), start_F, (0,), 1.0, staleness_exponent=0.5)
                assert server.load_arrays(arrays) == 2
                assert np.array_equal(server.global_state(0).vector_F, states[0].vector_F)
            states[step] = server.global_state()
            for later, by_version in taken.items():
                for version, clients in by_version.items():
                    if version == step or (lost and step == 2 and later == 2 and version == 0):
                        start = server.global_state(version) if version != step else states[step]
                        vectors = [start.vector_F.astype(np.float64) + moves[client] for client in clients]
                        server.fold(later, update(version, clients, vectors))
            order = tuple(client for clients in taken[step].values() for client in clients)
            report = server.apply(step, order, keep=keep[step])
            assert report.clients == len(order) <= len(begun[step]) + 2
        finals.append(server.arrays())
    assert finals[0].keys() == finals[1].keys() and all(np.array_equal(finals[0][n], finals[1][n]) for n in finals[0])
    assert not any(name.startswith("version/") for name in finals[0])


def test_what_is_refused():
    server = Server(Method(), np.zeros(SIZE), (0,), 1.0)
    one = update(0, (1,), [np.ones(SIZE)])
    with pytest.raises(ValueError, match="do not fit the server's state of round 0"):
        server.fold(1, one)  # a synchronous round is taken in at once
    buffered = Server(Method(), np.zeros(SIZE), (0,), 1.0, staleness_exponent=0.5)
    buffered.apply(0, (1,), one)
    with pytest.raises(ValueError, match="do not fit the server's state of round 1"):
        buffered.fold(0, one)
    with pytest.raises(ValueError, match="began from version 0, which the server does not hold"):
        buffered.apply(1, (1,), one)


def test_methods_that_broadcast_more_than_the_vector_have_no_earlier_versions():
    with pytest.raises(ValueError, match="of which only the vector is kept"):
        Server(METHODS["scaffold"](), np.zeros(SIZE), (0,), 1.0, staleness_exponent=0.5)


def test_a_change_that_is_not_finite_is_left_out_whatever_it_began_from():
    good, bad = update(3, (1,), [np.ones(SIZE)]), update(2, (4,), [np.full(SIZE, np.nan)])
    now_F, kept = np.zeros(SIZE), {2: np.ones(SIZE)}
    held = Held()
    for each in (bad, good):
        held.add(3, each)
    result = combined(held.take(3), 3, (4, 1), now_F, kept, 0.5)
    assert (result.clients, result.rejected_clients) == ((1,), (4,))
    np.testing.assert_allclose(result.vector_F, np.ones(SIZE))
    held.add(3, bad)
    with pytest.raises(ClientError, match="NaN or infinite"):
        combined(held.take(3), 3, (4,), now_F, kept, 0.5)


def test_a_change_in_full_from_where_it_began_stays_as_it_is():
    rng = np.random.default_rng(2)
    start_F, sum_F = rng.normal(size=SIZE), rng.normal(size=SIZE)
    np.testing.assert_allclose(rebased(sum_F, 3.0, start_F, start_F, 1.0), sum_F, rtol=1e-12, atol=1e-12)
