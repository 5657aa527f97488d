"""Statistics against scipy, brute force and cases with known answers, and the laws that they obey."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.study.outcome import McNemar
from fedsim.study.statistics import (
    DRAWN_FLIPS,
    MOST_EXACT,
    bca,
    effect_size,
    estimate,
    holm,
    least_p,
    mcnemar,
    paired,
    seeds_needed,
    sign_flip,
)

NORMAL = np.random.default_rng(5).normal(0.01, 0.02, 12)
EXAMPLES = 1000
"""Metrics of the properties are shares of so many examples, as accuracies are."""
SHARES = st.lists(st.tuples(st.integers(0, EXAMPLES), st.integers(0, EXAMPLES)), min_size=1, max_size=9)
few = settings(max_examples=40, deadline=None)


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(values))


def arms(shares) -> tuple[dict[int, float], dict[int, float]]:
    return by_seed(a / EXAMPLES for a, _ in shares), by_seed(b / EXAMPLES for _, b in shares)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_sign_flip_is_the_permutation_test_of_paired_samples(n):
    x = NORMAL[:n]
    p, flips = sign_flip(x)
    assert flips == "exact"
    signs = np.array(list(itertools.product([-1, 1], repeat=n)))
    assert p == (np.abs(signs @ x) >= abs(x.sum()) - 1e-12).mean()
    if n > 1:
        theirs = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(theirs.pvalue)


def test_sign_flip_of_ranks_is_wilcoxons_test_and_of_signs_the_binomial_one():
    ranks = np.sign(NORMAL) * stats.rankdata(np.abs(NORMAL))
    assert sign_flip(ranks)[0] == pytest.approx(stats.wilcoxon(NORMAL, method="exact").pvalue)
    assert sign_flip(np.sign(NORMAL))[0] == pytest.approx(stats.binomtest(int((NORMAL > 0).sum()), 12).pvalue)


def test_beyond_all_patterns_the_flips_are_drawn_and_agree_with_the_exact_test():
    x = np.sign(np.arange(MOST_EXACT + 4) - 5.5)  # 14 of 20 are positive: a binomial test
    p, flips = sign_flip(x)
    exact = stats.binomtest(14, 20).pvalue
    assert flips == "Monte Carlo"
    assert abs(p - exact) < 6 * math.sqrt(exact * (1 - exact) / DRAWN_FLIPS)
    assert sign_flip(np.ones(40))[0] == least_p(40) == 1 / (DRAWN_FLIPS + 1)


def test_the_least_p_is_that_of_differences_with_one_sign():
    for n in range(1, MOST_EXACT + 1):
        assert sign_flip(np.arange(1, n + 1))[0] == least_p(n) == 2 / 2**n
    assert [seeds_needed(family) for family in (1, 2, 3, 10)] == [6, 7, 7, 9]
    assert math.isnan(least_p(0)) and math.isnan(sign_flip([])[0])


@pytest.mark.parametrize("zeros", [1, 3])
def test_ties_make_p_larger_and_are_counted(zeros):
    difference = paired(by_seed([0.5] * 7), by_seed([0.5] * zeros + [0.6] * (7 - zeros)))
    assert difference.p == 2 ** (1 + zeros) / 2**7
    assert (difference.wins, difference.losses, difference.ties) == (7 - zeros, 0, zeros)


def test_bca_is_scipys_and_the_same_each_time():
    theirs = stats.bootstrap((NORMAL,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert bca(NORMAL) == bca(NORMAL) == (pytest.approx(theirs.low), pytest.approx(theirs.high), "BCa")


def test_bca_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = [low <= 1.0 <= high for low, high, _ in (bca(rng.exponential(size=40)) for _ in range(100))]
    assert 85 <= sum(covered) <= 99


@pytest.mark.parametrize(
    ("differences", "low", "high", "how"),
    [
        ([], math.nan, math.nan, "none"),
        ([0.1], math.nan, math.nan, "none"),
        ([0.1, 0.2], math.nan, math.nan, "none"),
        ([0.0, 0.0, 0.0], 0.0, 0.0, "all equal"),
        ([0.1, 0.1, 0.1], 0.1, 0.1, "all equal"),
    ],
)
def test_degenerate_differences_have_no_interval_or_one_without_length(differences, low, high, how):
    found = bca(differences)
    assert found == pytest.approx((low, high, how), nan_ok=True)
    assert math.isnan(effect_size(differences))


def test_equal_differences_are_equal_in_spite_of_rounding():
    difference = paired({0: 0.1, 1: 0.7, 2: 0.3, 3: 0.9}, {0: 0.3, 1: 0.9, 2: 0.5, 3: 1.1})
    assert len(set(difference.values.values())) > 1
    assert (difference.interval, difference.sd, difference.p) == ("all equal", 0.0, 0.125)
    assert difference.low == difference.high == pytest.approx(0.2)


def test_values_that_differ_by_rounding_are_ties():
    difference = paired({0: 0.3, 1: 0.5}, {0: 0.1 + 0.2, 1: 0.5})
    assert (difference.ties, difference.mean, difference.p) == (2, 0.0, 1.0)


@few
@given(SHARES)
def test_swapping_arms_turns_signs_and_leaves_p(shares):
    a, b = arms(shares)
    there, back = paired(a, b), paired(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), rel=1e-6, abs=1e-7, nan_ok=True)
    assert there.effect == pytest.approx(-back.effect, nan_ok=True)
    assert (there.p, there.wins, there.losses, there.ties) == (back.p, back.losses, back.wins, back.ties)


@few
@example([(0, 1), (0, 9), (1, 0)], 1.0)  # resamples with the mean of the sample, but for rounding
@given(SHARES, st.floats(-1, 1))
def test_what_both_arms_gain_changes_nothing(shares, gain):
    a, b = arms(shares)
    plain, moved = paired(a, b), paired({s: v + gain for s, v in a.items()}, {s: v + gain for s, v in b.items()})
    assert (plain.p, plain.wins, plain.interval) == (moved.p, moved.wins, moved.interval)
    numbers = [(d.mean, d.sd, d.low, d.high, d.effect) for d in (plain, moved)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6, abs=1e-7, nan_ok=True)


@few
@example([(0, 100)] * 3)  # whose mean is larger than each, for rounding
@given(SHARES)
def test_numbers_are_consistent(shares):
    difference = paired(*arms(shares))
    assert difference.n == difference.wins + difference.losses + difference.ties == len(shares)
    assert difference.least_p <= difference.p <= 1
    if difference.interval != "none":
        values = difference.values.values()
        assert min(values) <= difference.low <= difference.mean <= difference.high <= max(values)


def test_pairs_are_the_seeds_that_both_have_as_numbers():
    difference = paired({0: 0.5, 1: 0.5, 2: math.nan, 4: 0.5}, {1: 0.75, 2: 0.5, 3: 0.5, 4: math.nan})
    assert difference.values == {1: 0.25}
    assert math.isnan(difference.sd) and math.isnan(difference.low) and difference.p == 1.0
    nothing = paired({0: 0.5}, {1: 0.5})
    assert nothing.n == 0 and math.isnan(nothing.mean) and math.isnan(nothing.p) and math.isnan(nothing.least_p)


@few
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_monotone_and_never_below_raw(ps):
    adjusted = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
    assert [adjusted[i] for i in np.argsort(ps, kind="stable")] == sorted(adjusted)
    for level in (0.01, 0.05, 0.5):
        assert [q <= level for q in adjusted] == steps_down(ps, level)


def steps_down(ps: list[float], level: float) -> list[bool]:
    """Holm's procedure as he wrote it: reject from the smallest p on, until one is too large."""
    rejected = [False] * len(ps)
    for rank, i in enumerate(np.argsort(ps, kind="stable")):
        if (len(ps) - rank) * ps[i] > level:
            break
        rejected[i] = True
    return rejected


def test_holm_of_a_known_family_and_without_those_that_are_no_test():
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.5]) == [0.5]


def test_effect_size_is_hedges_g_of_paired_differences():
    x = np.array([1.0, 2.0, 3.0])
    assert effect_size(x) == pytest.approx(2.0 * 0.5642, rel=1e-4)  # J(2) = 0.5642, from Hedges' table
    assert effect_size(NORMAL) / (NORMAL.mean() / NORMAL.std(ddof=1)) == pytest.approx(1 - 3 / (4 * 11 - 1), rel=1e-3)


def test_effect_size_has_no_bias_with_few_seeds():
    samples = np.random.default_rng(1).normal(1.0, 1.0, (4000, 6))
    effects = np.array([effect_size(x) for x in samples])
    assert abs(effects.mean() - 1.0) < 4 * effects.std() / math.sqrt(len(effects))


def test_mcnemar_is_the_binomial_test_of_the_examples_that_one_gets_right():
    first = [True] * 30 + [True] * 9 + [False] * 2 + [False] * 5
    second = [True] * 30 + [False] * 9 + [True] * 2 + [False] * 5
    found = mcnemar(first, second)
    assert found == McNemar(30, 9, 2, 5, pytest.approx(stats.binomtest(2, 11).pvalue))
    assert found.p == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert mcnemar(second, first).p == found.p
    assert mcnemar(first, first).p == 1.0
    with pytest.raises(ValueError, match="same examples"):
        mcnemar(first, second[1:])


def test_an_arm_alone_has_the_interval_of_students_t():
    found = estimate(by_seed(NORMAL))
    theirs = stats.ttest_1samp(NORMAL, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert (found.n, found.mean, found.sd) == (12, pytest.approx(NORMAL.mean()), pytest.approx(NORMAL.std(ddof=1)))
    assert (found.least, found.most) == (NORMAL.min(), NORMAL.max())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_an_interval_cut_to_the_range_holds_the_same_possible_means(values, mean):
    """Cutting takes away no value that the mean can have, so the interval covers it as often."""
    whole, cut = estimate(by_seed(values)), estimate(by_seed(values), bounds=(0.0, 1.0))
    assert 0.0 <= cut.low <= cut.mean <= cut.high <= 1.0
    assert (cut.low <= mean <= cut.high) == (whole.low <= mean <= whole.high)
    assert (cut.mean, cut.sd, cut.n) == (whole.mean, whole.sd, whole.n)


def test_a_seed_without_a_number_is_named():
    found = estimate({0: 0.5, 1: math.nan, 2: math.inf}, without=[7])
    assert (found.n, found.mean, found.without, found.values) == (1, 0.5, (1, 2, 7), {0: 0.5})
    assert math.isnan(found.sd) and math.isnan(found.low)
    same = estimate(by_seed([0.1] * 3))
    assert (same.mean, same.sd, same.low, same.high) == (0.1, 0.0, 0.1, 0.1)
    assert math.isnan(estimate({}).mean)
