"""Cohorts and work groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.errors import ConfigError
from server.config import SamplingConfig
from server.sampling import cohort, cut

KINDS = ["uniform", "by_size", "round_robin"]
SIZES_N = np.array([0, 5, 1, 40, 0, 3, 10, 1, 2, 8])


def draw(kind, round, size=4, seed=0, sizes_N=SIZES_N):
    return cohort(SamplingConfig(kind=kind, clients_per_round=size), seed, round, sizes_N)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cohort_is_a_pure_function_of_seed_and_round(kind):
    np.testing.assert_array_equal(draw(kind, 3), draw(kind, 3))
    others = [draw(kind, round, seed=seed) for round, seed in ((4, 0), (5, 0), (3, 1), (3, 2))]
    assert any(not np.array_equal(draw(kind, 3), other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_no_client_twice_and_none_without_examples(kind):
    for round in range(200):
        drawn = draw(kind, round)
        assert len(set(drawn.tolist())) == 4 and (SIZES_N[drawn] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_population_can_take_part(kind):
    assert sorted(draw(kind, 0, size=8).tolist()) == np.flatnonzero(SIZES_N).tolist()
    with pytest.raises(ConfigError, match="clients_per_round is 9, but only 8 clients have training examples"):
        draw(kind, 0, size=9)


def test_uniform_draws_every_client_and_every_order_alike():
    drawn = np.array([draw("uniform", round) for round in range(4000)])
    shares = np.bincount(drawn.ravel(), minlength=10)[SIZES_N > 0] / 4000
    np.testing.assert_allclose(shares, 4 / 8, atol=0.04)
    first = np.bincount(drawn[:, 0], minlength=10)[SIZES_N > 0] / 4000
    np.testing.assert_allclose(first, 1 / 8, atol=0.025)


def test_by_size_draws_in_proportion_to_size_and_then_among_the_others():
    drawn = np.array([draw("by_size", round, size=2) for round in range(6000)])
    chance = SIZES_N / SIZES_N.sum()
    np.testing.assert_allclose(np.bincount(drawn[:, 0], minlength=10) / 6000, chance, atol=0.02)
    after_3 = drawn[drawn[:, 0] == 3, 1]
    among_others = np.where(np.arange(10) == 3, 0, chance) / (1 - chance[3])
    np.testing.assert_allclose(np.bincount(after_3, minlength=10) / len(after_3), among_others, atol=0.03)


def test_round_robin_visits_everyone_equally_often():
    drawn = np.concatenate([draw("round_robin", round, size=3) for round in range(8)])
    assert np.bincount(drawn, minlength=10)[SIZES_N > 0].tolist() == [3] * 8
    assert len(set(drawn[:8].tolist())) == 8


def test_groups_are_cut_in_ascending_order():
    assert cut(np.array([7, 1, 5, 3, 9]), 2) == [(1, 3), (5, 7), (9,)]
    assert cut([7, 1], 10) == [(1, 7)]
    assert all(type(client) is int for client in cut(np.array([2, 1]), 1)[0])
    with pytest.raises(ValueError, match="group_size"):
        cut([1], 0)


def test_groups_are_cut_to_equal_work():
    work_N = np.array([9, 1, 1, 8, 2, 1, 0, 7])
    assert cut([0, 3, 4, 7], 2, work_N) == [(3, 7), (0, 4)]
    # A group that is full takes no more, however little it has to do.
    assert cut([0, 1, 2, 5], 2, work_N) == [(0, 5), (1, 2)]


@given(
    work=st.lists(st.integers(0, 60), min_size=1, max_size=40), group_size=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_groups_of_equal_work_hold_every_client_once(work, group_size, seed):
    clients, work_N = np.random.default_rng(seed).permutation(len(work)), np.array(work)
    groups = cut(clients, group_size, work_N)
    assert sorted(client for group in groups for client in group) == list(range(len(work)))
    assert len(groups) == -(-len(work) // group_size) and max(map(len, groups)) <= group_size
    assert all(group == tuple(sorted(group)) for group in groups)
    loads = [int(work_N[list(group)].sum()) for group in groups]
    assert loads == sorted(loads, reverse=True)
    # The order in which the cohort was drawn plays no part.
    assert groups == cut(sorted(clients), group_size, work_N)
    if group_size >= len(work):
        return
    # No client of the heaviest group would be better off in a lighter one that has room.
    lightest = min(client_work for client_work in work_N[list(groups[0])])
    assert all(
        loads[0] <= load + lightest for group, load in zip(groups, loads, strict=True) if len(group) < group_size
    )


def test_poisson_draws_each_client_for_itself_in_any_order():
    able = np.flatnonzero(SIZES_N)
    config = SamplingConfig(draw="poisson", clients_per_round=2)
    drawn = [cohort(config, 0, round, SIZES_N) for round in range(6000)]
    here = np.array([np.isin(able, cohort) for cohort in drawn])
    np.testing.assert_allclose(here.mean(0), 2 / 8, atol=0.025)
    np.testing.assert_allclose(np.corrcoef(here.T), np.eye(8), atol=0.05)  # apart from each other
    sizes = np.bincount([len(cohort) for cohort in drawn], minlength=9) / 6000
    assert sizes[0] == pytest.approx(0.75**8, abs=0.02) and sizes[2] == pytest.approx(28 * 0.25**2 * 0.75**6, abs=0.02)
    pairs = np.array([cohort for cohort in drawn if len(cohort) == 2])
    assert np.mean(pairs[:, 0] < pairs[:, 1]) == pytest.approx(0.5, abs=0.05)
    everybody = cohort(SamplingConfig(draw="poisson", clients_per_round=8), 0, 0, SIZES_N)
    assert sorted(everybody.tolist()) == able.tolist()
