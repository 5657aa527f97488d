"""Plain English for the numbers of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedsim.display.report import MISSING, format_bytes, format_layers, format_seconds
from fedsim.study.measures import MEASURES, Kind
from fedsim.study.outcome import Difference, Estimate, Mismatch, Verdict
from fedsim.study.statistics import seeds_needed


def number(value: float, kind: Kind = "metric") -> str:
    """Format a figure by what it counts in."""
    if not math.isfinite(value):
        return MISSING
    if kind == "bytes":
        return format_bytes(value)
    if kind == "seconds":
        return format_seconds(value)
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "round":
        return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{value:.3f}"


def amount(value: float) -> str:
    """Format a difference of metrics: three decimals, or one digit if they are all zero."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.3f}"
    return text if value == 0 or float(text) else f"{value:.1g}"


def mean_sd(estimate: Estimate, kind: Kind = "metric") -> str:
    """Format ``mean ± SD``, or the mean of a single seed or of equal values that are no metric."""
    if not math.isfinite(estimate.sd) or (kind not in ("metric", "text") and not estimate.sd):
        return number(estimate.mean, kind)
    return f"{number(estimate.mean, kind)} ± {number(estimate.sd, kind)}"


def p_value(p: float) -> str:
    """Format p with its sign: ``= 0.031`` or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def count(number: int, one: str, more: str | None = None) -> str:
    """Format a number and its noun: ``1 seed``, ``3 seeds``."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def seeds_text(seeds: Sequence[int]) -> str:
    """Format seeds with ranges: ``seed 3``, ``seeds 0-2, 5``."""
    return f"seed{'' if len(seeds) == 1 else 's'} {format_layers(seeds)}"


def and_list(words: Sequence[str]) -> str:
    """Join words: ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def on_dataset(dataset: str, datasets: Sequence[str]) -> str:
    """Return `` on DATASET``, or nothing if there is no other one."""
    return f" on {dataset}" if len(datasets) > 1 else ""


def in_measure(measure: str, metric_name: str) -> str:
    """Return `` in MEASURE``, or nothing for the last global metric, which is meant if none is named."""
    if MEASURES[measure].kind == "text":
        return f" in {MEASURES[measure].label} of written responses"
    return "" if measure == "last" else f" in {MEASURES[measure].label} {metric_name}"


def compared(
    reference: str,
    arm: str,
    where: str,
    difference: Difference,
    verdict: Verdict,
    p_holm: float,
    least: float,
    family: int,
) -> str:
    """Say what a comparison of two arms shows, without what was left out of it.

    Parameters
    ----------
    reference, arm, difference, verdict
        See :class:`~fedsim.study.outcome.PairSummary`.
    where
        Data set and metric, see :func:`on_dataset` and :func:`in_measure`.
    p_holm, least, family
        Adjusted p, the least that there could be, and the number of comparisons that it is adjusted over.
    """
    d = difference
    if verdict == "no pairs":
        return f"{arm} and {reference} cannot be compared{where}: no seed has both"
    if verdict == "equal":
        return f"{arm} and {reference} are equal{where} in {'the one seed' if d.n == 1 else f'each of {d.n} seeds'}"
    if verdict == "cannot show":
        return _cannot_show(f"between {arm} and {reference}{where}", d, least, family)
    p = f"p {p_value(p_holm)}" + (f" over {family} data sets, {d.p:.2g} alone" if family > 1 else "")
    if verdict == "not shown":
        interval = f", 95 % interval {amount(d.low)} to {amount(d.high)}" if math.isfinite(d.low) else ""
        found = f"difference {amount(d.mean)}{interval}, better in {d.wins} of {d.n} seeds, {p}"
        return f"no difference between {arm} and {reference} is shown{where} ({found})"
    size, low, high, seeds = d.mean, d.low, d.high, d.wins
    if verdict == "worse":
        size, low, high, seeds = -d.mean, -d.high, -d.low, d.losses
    interval = f"95 % interval {amount(low)} to {amount(high)}"
    return f"{arm} is {amount(size)} {verdict} than {reference}{where} ({interval}, {seeds} of {d.n} seeds, {p})"


def _cannot_show(between: str, d: Difference, least: float, family: int) -> str:
    adjusted = least > d.least_p
    many = count(d.n, "seed") + (f" on {family} data sets" if adjusted else "")
    which = f"the least p adjusted over {family} data sets" if adjusted else "the least p"
    found = f"difference {amount(d.mean)}, better in {d.wins} of {d.n}"
    return f"{many} cannot show a difference {between}: {which} is {least:.2g}, {seeds_needed(family)} seeds could ({found})"


def left_out(
    compared: bool, lost: Mapping[str, Sequence[int]], alone: Mapping[str, Sequence[int]], pairs: Sequence[Mismatch]
) -> str:
    """Say what a comparison leaves out and which pairs are not exact; empty if there is nothing to say.

    Parameters
    ----------
    compared
        Whether there is any pair.
    lost
        By arm, its seeds that failed or have no value.
    alone
        By arm, its seeds that the other arm does not have.
    pairs
        Pairs that are not exact.
    """
    favour = ", which can favour it" if compared else ""
    parts = [f"{seeds_text(seeds)} of {arm} without a value{favour}" for arm, seeds in lost.items() if seeds]
    parts += [f"{seeds_text(seeds)} of {arm} without a partner" for arm, seeds in alone.items() if seeds]
    by_names: dict[tuple[str, ...], list[int]] = {}
    for pair in pairs:
        by_names.setdefault(pair.differs, []).append(pair.seed)
    parts += [
        f"not paired exactly: {and_list(names)} {_differ(names)} in {seeds_text(s)}" for names, s in by_names.items()
    ]
    return "".join(f"; {part}" for part in parts)


def _differ(names: Sequence[str]) -> str:
    return "differs" if len(names) == 1 and not names[0].endswith(("s", "data")) else "differ"
