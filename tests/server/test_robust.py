"""Robust aggregation: what each rule bears, small cases by hand, and how it enters a round."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedsim.configuration.schema import build_config
from fedsim.core.errors import ClientError, ConfigError
from fedsim.core.messages import VECTOR, CombinedUpdate, GroupUpdate
from fedsim.core.method import Correction, ServerState, plain
from fedsim.methods.control import AFTER, CHANGE, CONTROL
from server import robust
from server.aggregation import combine
from server.blocks import add_to_block
from server.config import ServerConfig
from server.robust import clip_factors, krum_selection, median, robust_update, squared_distances, trimmed_mean
from server.step import initial_state, step

RULES = ("median", "trimmed_mean", "norm_clipping", "multi_krum")
SIZE = 6


def combined(vector_kF, weights=None, sums=None, **each):
    vector_kF = np.asarray(vector_kF)
    weights_k = np.asarray(weights if weights is not None else np.ones(len(vector_kF)), float)
    return CombinedUpdate(
        round=0,
        clients=tuple(range(len(vector_kF))),
        rejected_clients=(),
        weight_sum=float(weights_k.sum()),
        steps_sum=len(vector_kF),
        vector_F=weights_k @ vector_kF / weights_k.sum(),
        sums=sums or {},
        each={VECTOR: vector_kF, **each},
        weights_k=weights_k,
    )


def config(rule, **keys):
    return ServerConfig(kind="fedavg", aggregation=rule, **keys)


def updated(server, update, start_F, control_F=None):
    """Return a round's update as the rule of a server config makes it."""
    arrays = {} if control_F is None else {CONTROL: control_F}
    return robust_update(server.rule(), server.method().corrections, update, ServerState(start_F, 1.0, arrays=arrays))


def average(rule, vector_kF, weights=None, origin=0.0, **keys):
    return updated(config(rule, **keys), combined(vector_kF, weights), np.full(SIZE, origin)).vector_F


def clients(rng, count, size=SIZE):
    return rng.normal(size=(count, size)).astype(np.float32)


# -- small cases by hand -----------------------------------------------------------------------------------------------


def test_median_and_trimmed_mean_by_hand():
    values_kF = np.array([[1.0, 9.0], [2.0, -5.0], [30.0, 4.0], [4.0, 4.0], [3.0, 0.0]])
    np.testing.assert_array_equal(median(values_kF), [3.0, 4.0])
    np.testing.assert_array_equal(median(values_kF[:4]), [3.0, 4.0])  # the mean of 2 and 4, of 4 and 4
    np.testing.assert_array_equal(trimmed_mean(values_kF, 1), [3.0, 8.0 / 3.0])
    np.testing.assert_array_equal(trimmed_mean(values_kF, 0), values_kF.mean(axis=0))


def test_norm_clipping_by_hand():
    """P_t = (1, 1); the changes have norms 5, 1 and 10."""
    vector_kF = np.array([[4.0, 5.0], [1.0, 2.0], [11.0, 1.0]])
    start_F, weights = np.ones(2), (1.0, 2.0, 1.0)
    np.testing.assert_array_equal(clip_factors(vector_kF, start_F, 2.0), [0.4, 1.0, 0.2])
    np.testing.assert_array_equal(clip_factors(vector_kF, start_F, None), [1.0, 1.0, 0.5])
    update = updated(config("norm_clipping", clip_norm=2.0), combined(vector_kF, weights), start_F)
    # (1 * (1.2, 1.6) + 2 * (0, 1) + 1 * (2, 0)) / 4
    np.testing.assert_allclose(update.vector_F, [1.0 + 3.2 / 4, 1.0 + 3.6 / 4], rtol=1e-15)


def test_krum_by_hand():
    """On a line at 0, 1, 3, 4, 100 with f = 1: the scores of two neighbours each are 10, 5, 5, 10, and far more."""
    vector_kF = np.array([[0.0], [1.0], [3.0], [4.0], [100.0]])
    assert krum_selection(vector_kF, 1, 2).tolist() == [1, 2]
    assert krum_selection(vector_kF, 1, 1).tolist() == [1]  # of equals the one drawn first
    update = updated(config("multi_krum"), combined(vector_kF, (9, 1, 3, 1, 1)), np.zeros(1))
    assert update.vector_F.tolist() == [2.0]  # f = 1, m = 2 by themselves; weights do not count


def test_distances_are_those_of_the_differences_however_they_are_cut(monkeypatch):
    vector_kF = clients(np.random.default_rng(0), 5, 100)
    gaps_kkF = vector_kF[:, None].astype(float) - vector_kF[None]
    np.testing.assert_allclose(squared_distances(vector_kF), (gaps_kkF**2).sum(axis=2), rtol=1e-12)
    expected = [median(vector_kF), trimmed_mean(vector_kF, 1)]
    monkeypatch.setattr(robust, "_ENTRIES", 7)
    np.testing.assert_allclose(squared_distances(vector_kF), (gaps_kkF**2).sum(axis=2), rtol=1e-12)
    for one, other in zip(expected, [median(vector_kF), trimmed_mean(vector_kF, 1)], strict=True):
        assert one.tobytes() == other.tobytes()


# -- properties --------------------------------------------------------------------------------------------------------

many = st.integers(3, 12)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("rule", RULES)
@given(seed=seeds, count=many)
def test_of_clients_that_agree_a_rule_is_their_mean(rule, seed, count):
    vector_F = clients(np.random.default_rng(seed), 1)
    found_F = average(rule, np.repeat(vector_F, count, axis=0), origin=0.5)
    np.testing.assert_allclose(found_F, vector_F[0], rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@given(seed=seeds, count=many)
def test_the_order_of_the_clients_does_not_matter(rule, seed, count):
    assume(rule != "multi_krum" or count > 3)  # of three, two are nearest to each other and score alike
    rng = np.random.default_rng(seed)
    vector_kF, weights_k, order = clients(rng, count), rng.random(count), rng.permutation(count)
    one, other = average(rule, vector_kF, weights_k), average(rule, vector_kF[order], weights_k[order])
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)
    if rule in ("median", "trimmed_mean"):
        assert one.tobytes() == other.tobytes()


@given(seed=seeds, count=many, scale=st.sampled_from([1.0, 1e3, 1e30]))
def test_fewer_than_half_arbitrary_clients_leave_the_median_among_the_honest(seed, count, scale):
    rng = np.random.default_rng(seed)
    honest_kF = clients(rng, count - (count - 1) // 2)
    false_kF = (clients(rng, (count - 1) // 2) * scale).astype(np.float32)
    found_F = median(rng.permutation(np.concatenate([honest_kF, false_kF])))
    assert (found_F >= honest_kF.min(axis=0)).all() and (found_F <= honest_kF.max(axis=0)).all()


@given(seed=seeds, count=many, scale=st.sampled_from([1.0, 1e3, 1e30]))
def test_no_more_arbitrary_clients_than_are_trimmed_leave_the_trimmed_mean_among_the_honest(seed, count, scale):
    rng = np.random.default_rng(seed)
    trim = int(rng.integers(0, (count - 1) // 2 + 1))
    honest_kF = clients(rng, count - trim)
    found_F = trimmed_mean(np.concatenate([honest_kF, (clients(rng, trim) * scale).astype(np.float32)]), trim)
    assert (found_F >= honest_kF.min(axis=0) - 1e-6).all() and (found_F <= honest_kF.max(axis=0) + 1e-6).all()


@given(seed=seeds, count=st.integers(5, 12))
def test_multi_krum_keeps_no_far_outlier(seed, count):
    rng = np.random.default_rng(seed)
    attackers = int(rng.integers(1, (count - 3) // 2 + 1))
    vector_kF = clients(rng, count)
    outliers = rng.choice(count, attackers, replace=False)
    vector_kF[outliers] += 1e3 * np.arange(1, attackers + 1, dtype=np.float32)[:, None]
    assert not set(krum_selection(vector_kF, attackers, count - attackers).tolist()) & set(outliers.tolist())


@given(seed=seeds, count=many, clip_norm=st.floats(0.01, 10.0))
def test_norm_clipping_moves_no_further_than_its_norm_and_leaves_short_changes_alone(seed, count, clip_norm):
    rng = np.random.default_rng(seed)
    vector_kF, weights_k = clients(rng, count) * np.float32(1e4), rng.random(count) + 0.1
    moved_F = average("norm_clipping", vector_kF, weights_k, origin=1.0, clip_norm=clip_norm) - 1.0
    assert np.linalg.norm(moved_F) <= clip_norm * (1 + 1e-9)
    short_kF = vector_kF * np.float32(1e-9)
    mean_F = weights_k @ short_kF.astype(float) / weights_k.sum()
    np.testing.assert_allclose(average("norm_clipping", short_kF, weights_k, clip_norm=clip_norm), mean_F, rtol=1e-9)


# -- in a round --------------------------------------------------------------------------------------------------------


def server_update(rng, number, clients_of_group, given):
    count = len(clients_of_group)
    arrays = {name: clients(rng, count) for name in (VECTOR, *given)}
    sums = {CONTROL: np.zeros(SIZE), CHANGE: np.zeros(SIZE)} if given else {}
    return GroupUpdate(
        round=0,
        group=number,
        part=0,
        clients=clients_of_group,
        weight_sum=float(count),
        steps_sum=count,
        sums={VECTOR: arrays[VECTOR].astype(float).sum(axis=0), **sums},
        each=arrays,
        weights_k=np.ones(count),
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("given_arrays", [(), (CONTROL,), (CONTROL, AFTER)])
def test_groups_and_blocks_give_the_bits_of_one_group(name, given_arrays):
    order = (4, 0, 6, 2, 5, 1, 3)
    groups = [
        server_update(np.random.default_rng(i), i, own, given_arrays) for i, own in enumerate([(0, 1, 2), (3, 4, 5, 6)])
    ]
    joined = {name: np.concatenate([group.each[name] for group in groups]) for name in (VECTOR, *given_arrays)}
    one = replace(groups[0], clients=tuple(range(7)), weight_sum=7.0, steps_sum=7, each=joined, weights_k=np.ones(7))
    kind = {"kind": "fedpeptao", "control_timing": "before" if len(given_arrays) == 2 else "after"}
    server = ServerConfig(**(kind if given_arrays else {"kind": "fedavg"}), aggregation=name)
    method, rule = server.method(), server.rule()
    state = initial_state(method, np.full(SIZE, 0.25))
    found = [
        step(method, state, combine(updates, order), 1.0, 7.0, rule)
        for updates in ([one], groups, groups[::-1], [add_to_block(None, groups)])
    ]
    for other in found[1:]:
        assert other.vector_F.tobytes() == found[0].vector_F.tobytes()
        if given_arrays:
            assert other.arrays[CONTROL].tobytes() == found[0].arrays[CONTROL].tobytes()
    rule_F = robust_update(rule, method.corrections, combine([one], order), state).vector_F
    if not given_arrays:
        np.testing.assert_allclose(found[0].vector_F, rule_F, rtol=1e-15)


@pytest.mark.parametrize("mean", ["weights", "steps"])
@pytest.mark.parametrize("timing", ["before", "after"])
def test_control_variates_follow_the_same_rule(timing, mean):
    """c+ = c + share (rule(c_i+) - c), so that c forgets what it was and cannot drift away."""
    rng = np.random.default_rng(1)
    used_kF, after_kF = clients(rng, 9), clients(rng, 9)
    control = {CONTROL: used_kF} | ({AFTER: after_kF} if timing == "before" else {})
    server = ServerConfig(aggregation="median", control_timing=timing, control_mean=mean)
    control_F = rng.normal(size=SIZE)
    state = initial_state(server.method(), np.zeros(SIZE)).with_arrays(control=control_F)
    update = combined(clients(rng, 9), np.full(9, 2.0), **control)
    found = step(server.method(), state, update, 0.1, 180.0, server.rule())
    target_F = np.median(after_kF if timing == "before" else used_kF, axis=0)
    np.testing.assert_allclose(found.arrays[CONTROL], control_F + 0.1 * (target_F - control_F), rtol=1e-12)


def test_the_clients_that_krum_keeps_and_the_factors_of_clipping_hold_for_control_variates_too():
    rng = np.random.default_rng(2)
    vector_kF, control_kF = clients(rng, 5), clients(rng, 5)
    vector_kF[3] += 100.0
    control_F, start_F = rng.normal(size=SIZE), np.zeros(SIZE)
    update, kind = combined(vector_kF, **{CONTROL: control_kF}), {"kind": "scaffold"}
    kept = krum_selection(vector_kF, 1, 2)
    krum = updated(ServerConfig(**kind, aggregation="multi_krum"), update, start_F, control_F)
    np.testing.assert_allclose(krum.mean_F(CONTROL), control_kF[kept].mean(axis=0), rtol=1e-6)
    factor_k = clip_factors(vector_kF, start_F, 1.0)
    clipped = updated(ServerConfig(**kind, aggregation="norm_clipping", clip_norm=1.0), update, start_F, control_F)
    np.testing.assert_allclose(
        clipped.mean_F(CONTROL), control_F + (factor_k[:, None] * (control_kF - control_F)).mean(axis=0), rtol=1e-9
    )


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server, cohort, sentence",
    [
        (
            {},
            10,
            r"client.correction=preconditioner \(auto with server.kind=fedpeptao\) averages .*; set client.correct",
        ),
        ({"kind": "fedpeptao_published"}, 10, "aggregation=median is not defined with coupling=chained"),
        (
            {"kind": "fedavg", "aggregation": "multi_krum", "assumed_attackers": 4},
            10,
            r"11 clients for f=4 .* not 10; give",
        ),
        (
            {"kind": "fedavg", "aggregation": "multi_krum"},
            2,
            "needs 2 f [+] 3 = 3 clients .* let at least 3 clients take",
        ),
        ({"kind": "fedavg", "aggregation": "multi_krum", "kept_clients": 8}, 10, "kept_clients=8 of 10 .* at most 7"),
        ({"kind": "fedavg", "aggregation": "trimmed_mean", "trim_share": 0.4}, 3, "trims 2 of 3 .* give at most 0.333"),
    ],
)
def test_what_is_not_defined_is_refused_before_the_run(server, cohort, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_config({"server": {"aggregation": "median", **server}, "sampling": {"clients_per_round": cohort}})


def test_a_round_in_which_too_few_clients_are_left_says_so():
    with pytest.raises(
        ClientError, match=r"round 1: 6 clients of its cohort are left, and .* 2 f [+] 3 = 7 clients for f=2"
    ):
        average("multi_krum", clients(np.random.default_rng(0), 6), assumed_attackers=2)


def test_the_warm_up_is_fedavg_by_the_same_rule_and_keeps_no_control_variate():
    """Devices train as ever, so that their variates come one by one, and nothing is done with them."""
    rng = np.random.default_rng(3)
    server = ServerConfig(kind="scaffold", aggregation="median")
    warm_up = plain(server.method().corrections)
    state = initial_state(warm_up, np.zeros(SIZE))
    update = combined(clients(rng, 5), sums={CHANGE: np.ones(SIZE)}, **{CONTROL: clients(rng, 5)})
    after = step(warm_up, state, update, 1.0, 5.0, server.rule())
    np.testing.assert_array_equal(after.vector_F, median(update.each[VECTOR]))
    assert after.arrays == {} and plain((Correction(),)).broadcast == ()
