"""Folding group sums: averages, bits, rejection of what is not finite, refusal of what does not fit."""

from dataclasses import replace

import numpy as np
import pytest

from fedsim.core.errors import ClientError
from fedsim.core.messages import VECTOR, GroupUpdate
from server.aggregation import combine

ORDER = (8, 2, 5, 1, 9, 4, 3)
SIZE = 50
RNG = np.random.default_rng(0)
WEIGHTS = {client: float(RNG.integers(1, 90)) for client in ORDER}
STEPS = {client: int(RNG.integers(1, 30)) for client in ORDER}
VECTORS = {client: RNG.normal(size=SIZE) * 10.0 ** RNG.integers(-8, 8) for client in ORDER}
CONTROLS = {client: RNG.normal(size=SIZE).astype(np.float32) for client in ORDER}


def update(group, part, clients, each=True):
    """Return the sums of some clients, added from left to right from zeros, as a worker does."""
    vector_F, delta_F, control_F = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for client in clients:
        control = CONTROLS[client].astype(np.float64)
        vector_F = vector_F + WEIGHTS[client] * VECTORS[client]
        delta_F = delta_F + STEPS[client] * control
        control_F = control_F + WEIGHTS[client] * control
    return GroupUpdate(
        round=6,
        group=group,
        part=part,
        clients=tuple(clients),
        weight_sum=float(sum(WEIGHTS[client] for client in clients)),
        steps_sum=sum(STEPS[client] for client in clients),
        sums={VECTOR: vector_F, "change": delta_F, "control": control_F},
        each={"control": np.stack([CONTROLS[client] for client in clients])} if each else {},
        weights_k=np.array([WEIGHTS[client] for client in clients]) if each else None,
    )


GROUPS = [(1, 2, 3), (4, 5, 8), (9,)]


def whole_groups():
    return [update(number, 0, clients) for number, clients in enumerate(GROUPS)]


def single_clients():
    return [update(g, part, (client,)) for g, clients in enumerate(GROUPS) for part, client in enumerate(clients)]


def test_averages():
    combined = combine(whole_groups(), ORDER)
    weights = np.array([WEIGHTS[client] for client in ORDER])
    vectors = np.stack([VECTORS[client] for client in ORDER])
    controls = np.stack([CONTROLS[client] for client in ORDER]).astype(np.float64)
    np.testing.assert_allclose(combined.vector_F, np.average(vectors, axis=0, weights=weights), rtol=1e-9)
    np.testing.assert_allclose(
        combined.mean_F("control"), np.average(controls, axis=0, weights=weights), rtol=1e-9, atol=1e-12
    )
    steps = np.array([STEPS[client] for client in ORDER])
    np.testing.assert_allclose(combined.sums["change"], steps @ controls, rtol=1e-9, atol=1e-9)
    assert (combined.round, combined.weight_sum, combined.steps_sum) == (6, weights.sum(), steps.sum())
    assert combined.vector_F.dtype == np.float64


def test_clients_one_by_one_come_back_in_the_order_in_which_they_were_drawn():
    combined = combine(whole_groups(), np.array(ORDER))
    assert combined.clients == ORDER
    assert combined.weights_k.tolist() == [WEIGHTS[client] for client in ORDER]
    np.testing.assert_array_equal(combined.each["control"], np.stack([CONTROLS[client] for client in ORDER]))


def assert_same_bits(a, b):
    assert (a.round, a.clients, a.rejected_clients, a.weight_sum, a.steps_sum) == (
        b.round,
        b.clients,
        b.rejected_clients,
        b.weight_sum,
        b.steps_sum,
    )
    assert a.vector_F.tobytes() == b.vector_F.tobytes() and a.weights_k.tobytes() == b.weights_k.tobytes()
    for ours, theirs in ((a.sums, b.sums), (a.each, b.each)):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_whole_groups_and_parts_of_one_client_give_the_same_bits_in_any_order_of_arrival():
    expected = combine(whole_groups(), ORDER)
    for seed in range(20):
        parts = single_clients()
        np.random.default_rng(seed).shuffle(parts)
        assert_same_bits(combine(parts, ORDER), expected)


def test_the_cut_into_groups_does_decide_the_bits():
    """Otherwise the test before would prove nothing: these numbers do not add up alike in every order."""
    one_group = combine([update(0, 0, sorted(ORDER))], ORDER)
    assert one_group.vector_F.tobytes() != combine(whole_groups(), ORDER).vector_F.tobytes()


def test_only_sums_are_needed_where_the_method_uses_no_more():
    bare = [replace(u, sums={VECTOR: u.sums[VECTOR]}, weights_k=None, each={}) for u in whole_groups()]
    combined = combine(bare, ORDER)
    assert combined.sums.keys() == {VECTOR} and combined.each == {} and combined.weights_k is None
    np.testing.assert_array_equal(combined.vector_F, combine(whole_groups(), ORDER).vector_F)


def test_failed_clients_may_be_missing():
    updates = [update(0, 0, (1, 3)), update(1, 0, (4, 5, 8))]
    combined = combine(updates, ORDER)
    assert combined.clients == (8, 5, 1, 4, 3) and combined.rejected_clients == ()


# -- not finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "field, name",
    [("sums", VECTOR), ("sums", "change"), ("sums", "control"), ("each", "control"), ("weights_k", None)],
)
def test_an_update_that_is_not_finite_is_left_out_and_reported(field, name, value):
    updates = whole_groups()
    arrays = getattr(updates[1], field)
    spoiled = np.array(arrays if name is None else arrays[name])
    spoiled.flat[-1] = value
    updates[1] = replace(updates[1], **{field: spoiled if name is None else {**arrays, name: spoiled}})
    combined = combine(updates, ORDER)
    assert combined.rejected_clients == (4, 5, 8)
    assert combined.clients == (2, 1, 9, 3)
    without = combine([updates[0], updates[2]], ORDER)
    np.testing.assert_array_equal(combined.vector_F, without.vector_F)
    np.testing.assert_array_equal(combined.weights_k, without.weights_k)
    assert np.isfinite(combined.vector_F).all() and combined.steps_sum == without.steps_sum


def test_a_weight_that_is_not_finite_is_left_out():
    updates = [replace(whole_groups()[0], weight_sum=float("nan")), *whole_groups()[1:]]
    assert combine(updates, ORDER).rejected_clients == (1, 2, 3)


def test_no_usable_update_is_an_error():
    with pytest.raises(ClientError, match="no usable update in this round: no client returned a result"):
        combine([], ORDER)
    spoiled = [replace(u, sums={**u.sums, VECTOR: np.full(SIZE, np.nan)}) for u in whole_groups()]
    with pytest.raises(ClientError, match="sums of all 7 clients are NaN or infinite"):
        combine(spoiled, ORDER)


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"round": 5}, "update of group 1, part 0, is of round 5, others are of round 6"),
        ({"sums": {VECTOR: np.zeros(3)}}, r"has shape \(3,\), others \(50,\)"),
        ({"sums": {"control": None}}, "disagree on whether the sum 'control' is given"),
        ({"sums": {"control": np.zeros(3)}}, r"has the sum 'control' of shape \(3,\), expected \(50,\)"),
        ({"weights_k": np.ones(2)}, r"has each client's weight of shape \(2,\), expected \(3,\)"),
        (
            {"each": {"control": np.ones((2, SIZE))}},
            r"has each client's 'control' of shape \(2, 50\), expected \(3, 50\)",
        ),
        ({"clients": (3, 5, 8)}, "holds a client twice"),
        ({"clients": (4, 4, 8)}, "holds a client twice"),
        ({"clients": (4, 5, 77)}, "holds client 77, which is not in the cohort"),
    ],
)
def test_updates_that_do_not_belong_together(changes, sentence):
    updates = whole_groups()
    if "sums" in changes:
        merged = {**updates[1].sums, **changes["sums"]}
        changes = {"sums": {name: array for name, array in merged.items() if array is not None}}
    updates[1] = replace(updates[1], **changes)
    with pytest.raises(ValueError, match=sentence):
        combine(updates, ORDER)


def test_an_order_with_a_client_twice():
    with pytest.raises(ValueError, match="order names a client twice"):
        combine(whole_groups(), (*ORDER, 8))
