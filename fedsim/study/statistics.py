"""Statistics of paired runs: intervals, sign-flip test, Holm's adjustment, effect size, McNemar's test.

Runs of two arms with the same seed have the same data, partition and cohorts, so their difference is a paired one. scipy
is imported where it is used: commands that compare nothing start without it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.study.outcome import Difference, Estimate, McNemar

LEVEL = 0.95
ALPHA = 0.05
MOST_EXACT = 16
"""Pairs up to which all sign flips are tried."""
DRAWN_FLIPS = 99_999
RESAMPLES = 9_999
FEWEST_FOR_INTERVAL = 3
"""Pairs from which a difference has an interval and an effect size: two say next to nothing of their spread."""
_SEED = 0
_ROUNDING = 1e-9
"""Differences this much smaller than the largest are rounding."""
_CHUNK = 10_000


def estimate(
    values: Mapping[int, float], without: Sequence[int] = (), bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Return mean, standard deviation and Student t interval of one arm's figure over seeds.

    The interval is cut to the range of the figure: a mean cannot lie outside, so what is cut away holds no value that it might
    have, and the interval holds the true mean as often as before.

    Parameters
    ----------
    values
        The figure by seed; NaN for a seed without a value.
    without
        Further seeds without a value.
    bounds
        Least and greatest value that the figure can have.
    """
    found = {seed: float(value) for seed, value in sorted(values.items()) if math.isfinite(value)}
    lacking = tuple(sorted({*without, *(set(values) - set(found))}))
    if not found:
        nan = math.nan
        return Estimate(0, nan, nan, nan, nan, nan, nan, {}, lacking)
    x = np.array(list(found.values()))
    mean = _mean(x)
    sd = math.nan if len(x) < 2 else float(x.std(ddof=1)) if np.ptp(x) else 0.0
    half = math.nan
    if len(x) > 1:
        from scipy.special import stdtrit

        half = float(stdtrit(len(x) - 1, 0.5 + LEVEL / 2)) * sd / math.sqrt(len(x))
    low, high = (float(np.clip(end, *bounds)) for end in (mean - half, mean + half))
    return Estimate(len(x), mean, sd, low, high, float(x.min()), float(x.max()), found, lacking)


def paired_differences(reference: Mapping[int, float], arm: Mapping[int, float]) -> dict[int, float]:
    """Return ``arm - reference`` by seed, over the seeds that have both; what is rounding is zero."""
    found = {}
    for seed in sorted(set(reference) & set(arm)):
        difference = arm[seed] - reference[seed]
        if math.isfinite(difference):
            scale = max(abs(arm[seed]), abs(reference[seed]))
            found[seed] = difference if abs(difference) > 1e-12 * scale else 0.0
    return found


def paired(reference: Mapping[int, float], arm: Mapping[int, float]) -> Difference:
    """Return the paired differences ``arm - reference`` over the seeds that both have, and what they show.

    The interval is BCa bootstrap of the mean, the test an exact sign-flip test of the mean, the effect size Hedges' g of
    paired differences.
    """
    values = paired_differences(reference, arm)
    x = np.array(list(values.values()))
    low, high, interval = bca(x)
    p, flips = sign_flip(x)
    return Difference(
        n=len(x),
        mean=_mean(x) if len(x) else math.nan,
        sd=math.nan if len(x) < 2 else 0.0 if _all_equal(x) else float(x.std(ddof=1)),
        low=low,
        high=high,
        interval=interval,
        p=p,
        least_p=least_p(len(x)),
        flips=flips,
        effect=effect_size(x),
        wins=int((x > 0).sum()),
        losses=int((x < 0).sum()),
        ties=int((x == 0).sum()),
        values=values,
    )


def bca(differences: Sequence[float] | np.ndarray) -> tuple[float, float, str]:
    """Return the 95 % BCa bootstrap interval of the mean, and how it was made.

    The resamples have a fixed seed: the same differences always have the same interval. Differences that are all equal have
    an interval of length zero, and fewer than three have none. Should the correction be undefined, the interval is that of
    percentiles, and says so.
    """
    x = np.asarray(differences, float)
    if len(x) < FEWEST_FOR_INTERVAL:
        return math.nan, math.nan, "none"
    if _all_equal(x):
        return _mean(x), _mean(x), "all equal"
    low, high = _bootstrap(x, "BCa")
    if math.isfinite(low) and math.isfinite(high):
        return low, high, "BCa"
    return *_bootstrap(x, "percentile"), "percentile"


def _bootstrap(x: np.ndarray, method: str) -> tuple[float, float]:
    from scipy import stats

    # the generator's keyword was renamed in scipy 1.15
    keyword = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"
    generator: dict[str, Any] = {keyword: np.random.default_rng(_SEED)}
    # With few seeds many resamples have the same mean as the sample, and the correction counts them: rounding must not tell
    # them apart. No ratio of means of shares lies between two multiples of this unit.
    unit = float(np.abs(x).max()) / (math.pi * 1e7)

    def mean(samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.round(samples.mean(axis) / unit)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an undefined correction is NaN, and is answered
        found = stats.bootstrap((x,), mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method=method, **generator)
    low, high = np.clip(
        np.array([found.confidence_interval.low, found.confidence_interval.high]) * unit, x.min(), x.max()
    )
    return float(low), float(high)


def sign_flip(differences: Sequence[float] | np.ndarray) -> tuple[float, str]:
    """Return p of the two-sided sign-flip test of the mean, and whether it is ``exact`` or ``Monte Carlo``.

    If the arms do not differ, each difference is as likely with either sign. p is the share of all sign patterns whose mean
    is at least as far from zero; beyond 16 pairs, of 99,999 drawn ones and the one that was seen. NaN without pairs.
    """
    x = np.asarray(differences, float)
    n = len(x)
    if not n:
        return math.nan, "exact"
    bound = abs(x.sum()) - _ROUNDING * np.abs(x).sum()
    if n <= MOST_EXACT:
        # a pattern and its opposite are equally far from zero: the first sign can stay
        patterns = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * patterns) @ x) >= bound).mean()), "exact"
    rng = np.random.default_rng(_SEED)
    extreme = 1
    for start in range(0, DRAWN_FLIPS, _CHUNK):
        signs = 1 - 2 * rng.integers(0, 2, size=(min(_CHUNK, DRAWN_FLIPS - start), n))
        extreme += int((np.abs(signs @ x) >= bound).sum())
    return extreme / (DRAWN_FLIPS + 1), "Monte Carlo"


def least_p(n: int) -> float:
    """Return the least p that the sign-flip test of ``n`` pairs can have: 2 / 2^n, of the pattern and its opposite."""
    if not n:
        return math.nan
    return 2.0 ** (1 - n) if n <= MOST_EXACT else max(2.0 ** (1 - n), 1 / (DRAWN_FLIPS + 1))


def seeds_needed(family: int, alpha: float = ALPHA) -> int:
    """Return the number of pairs from which ``family`` comparisons, Holm-adjusted, can all be significant."""
    return next(n for n in range(1, 200) if max(family, 1) * least_p(n) <= alpha)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm over the family that they form; NaN is no test and stays out of it."""
    adjusted = [math.nan] * len(ps)
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def effect_size(differences: Sequence[float] | np.ndarray) -> float:
    """Return Hedges' g of paired differences: their mean in units of their standard deviation, without small-sample bias.

    Cohen's d_z times the exact correction Γ(m/2) / (√(m/2) Γ((m-1)/2)), m = n - 1. NaN with fewer than three differences, or
    if all are equal: there is no spread to measure by.
    """
    x = np.asarray(differences, float)
    if len(x) < FEWEST_FOR_INTERVAL or _all_equal(x):
        return math.nan
    m = len(x) - 1
    correction = math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2)) / math.sqrt(m / 2)
    return correction * float(x.mean()) / float(x.std(ddof=1))


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> McNemar:
    """Compare two runs by the examples that one gets right and the other wrong: McNemar's test, exact and two-sided.

    Parameters
    ----------
    first, second
        Whether each example is right, the same examples in the same order.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"McNemar's test needs the same examples twice, not {a.shape} and {b.shape}")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    p = 1.0
    if only_first + only_second:
        from scipy.stats import binomtest

        p = float(binomtest(only_first, only_first + only_second).pvalue)
    return McNemar(int((a & b).sum()), only_first, only_second, int((~a & ~b).sum()), p)


def _mean(x: np.ndarray) -> float:
    """Return the mean, which rounding would take out of the range of numbers that are equal."""
    return float(np.clip(x.mean(), x.min(), x.max()))


def _all_equal(x: np.ndarray) -> bool:
    return bool(np.ptp(x) <= _ROUNDING * np.abs(x).max())
