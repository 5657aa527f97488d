"""What a study found: the dataclasses that the printed table, the page and the exported files read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from fedsim.study.figures import CellFigures, FailedCell

Verdict = Literal["better", "worse", "equal", "not shown", "cannot show", "no pairs"]
"""Of the arm against the reference. ``not shown``: enough seeds, but p is above alpha; ``cannot show``: with so few seeds
(and so many data sets) no result could be significant; ``equal``: the same value in every seed; ``no pairs``: no seed has
both."""


@dataclass(frozen=True)
class Estimate:
    """A figure of one arm over seeds; NaN where too few seeds have it."""

    n: int
    """Seeds with a value."""
    mean: float
    sd: float
    """Sample standard deviation (n - 1); NaN for one seed."""
    low: float
    """Lower end of the 95 % Student t interval of the mean, cut to the figure's range; NaN for one seed."""
    high: float
    least: float
    most: float
    values: dict[int, float]
    """By seed; seeds without a value are not in it."""
    without: tuple[int, ...] = ()
    """Seeds that finished but have no value: not measured, not reached, or not a number."""


@dataclass(frozen=True)
class Difference:
    """Paired differences ``arm - reference`` by seed, and what they show; NaN where n is too small."""

    n: int
    mean: float
    sd: float
    low: float
    """Lower end of the 95 % interval of the mean; NaN with fewer than three pairs."""
    high: float
    interval: str
    """How the interval was made: ``BCa``, ``percentile``, ``all equal`` or ``none``."""
    p: float
    """Of the two-sided sign-flip test."""
    least_p: float
    """The least p that so many pairs can have."""
    flips: str
    """``exact`` if all sign flips were tried, ``Monte Carlo`` if they were drawn."""
    effect: float
    """Hedges' g of paired differences: mean / SD, with the correction for small samples; NaN with fewer than three pairs
    or if all differences are equal."""
    wins: int
    """Seeds in which the arm is better."""
    losses: int
    ties: int
    values: dict[int, float]
    """By seed."""


@dataclass(frozen=True)
class McNemar:
    """Two arms on the same examples, by exact test: do their mistakes differ?"""

    both_right: int
    only_first: int
    """Examples that only the first (the reference) gets right."""
    only_second: int
    both_wrong: int
    p: float


@dataclass(frozen=True)
class Mismatch:
    """A pair of runs that did not have everything in common."""

    seed: int
    differs: tuple[str, ...]
    """``cohorts`` and names of contents: ``training_data``, ``partition``, ``weights`` ..."""


@dataclass(frozen=True)
class PairSummary:
    """An arm against the reference on one data set, by one metric."""

    dataset: str
    reference: str
    arm: str
    measure: str
    """One of ``measures.COMPARED``."""
    difference: Difference
    p_holm: float
    """p adjusted by Holm over the data sets on which these two arms are compared by this metric."""
    least_p_holm: float
    """The least adjusted p that so many pairs can have."""
    family: int
    """Number of comparisons that the adjustment is over."""
    verdict: Verdict
    sentence: str
    missing: dict[str, tuple[int, ...]]
    """By arm: its planned seeds that are in no pair."""
    mismatches: tuple[Mismatch, ...] = ()
    """Pairs that are not exact."""
    mcnemar: dict[int, McNemar] | None = None
    """By seed, where predictions of both runs were kept; for the metric ``last`` alone."""

    @property
    def significant(self) -> bool:
        """Whether a difference is shown."""
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class CostRatio:
    """What an arm needs to reach the target, as a multiple of what the reference needs."""

    dataset: str
    reference: str
    arm: str
    measure: str
    """One of ``measures.TO_TARGET``."""
    n: int
    """Seeds in which both reach it; there is no ratio without one."""
    ratio: float
    """Geometric mean of the seeds' ratios; below 1 the arm needs less."""


@dataclass(frozen=True)
class BestArm:
    """The arm with the highest mean on a data set, and whether it is shown to be better than every other arm."""

    dataset: str
    measure: str
    arms: tuple[str, ...]
    """More than one if their means are the same."""
    supported: bool
    """Whether it may stand in bold."""
    p_holm: float
    """The largest p of its comparisons with the other arms, adjusted by Holm over data sets; NaN if it cannot be tested."""
    rival: str
    """The arm that this p is against, or that has no seed in common with it; empty if there is no such arm."""
    sentence: str
    shared: tuple[int, ...] = ()
    """The seeds that its mean is over, where arms have different ones: those that all arms have."""


@dataclass(frozen=True)
class ArmSummary:
    """An arm on a data set."""

    dataset: str
    arm: str
    is_reference: bool
    metric_name: str
    seeds: tuple[int, ...]
    """Planned."""
    finished: tuple[int, ...]
    failed: tuple[FailedCell, ...]
    target: float
    target_metric: str
    """The text metric that it is a value of; empty for the task's metric."""
    reached: tuple[int, ...]
    """Seeds that reach the target."""
    figures: dict[str, Estimate]
    """By names of ``measures.MEASURES``; those of ``measures.TO_TARGET`` are over the seeds that reach the target, and text
    metrics are left out where no run of the study has them."""


@dataclass(frozen=True)
class StudySummary:
    """Everything that a study found."""

    name: str
    reference: str
    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    rows: tuple[ArmSummary, ...]
    """Data sets in their order, and in each the arms in theirs."""
    pairs: tuple[PairSummary, ...]
    """Data sets in their order, in each the arms but the reference, and for each the metrics that were measured."""
    ratios: tuple[CostRatio, ...]
    best: tuple[BestArm, ...]
    """By data set and metric that was measured."""
    failed: tuple[FailedCell, ...]
    """All of them, in the order of ``rows``."""
    notes: tuple[str, ...]
    """Sentences for below the table: how intervals and p are made, over which families, and what cannot be concluded."""
    cells: tuple[CellFigures, ...]
    """In the order of ``rows``, by seed."""
    alpha: float = 0.05
    level: float = 0.95

    @property
    def has_clock(self) -> bool:
        """Whether all runs have a virtual clock of their own (world.devices), which modelled times then are."""
        return bool(self.cells) and all(cell.about.get("seconds_simulated") is not None for cell in self.cells)

    def row(self, dataset: str, arm: str) -> ArmSummary:
        """Return an arm on a data set."""
        return next(row for row in self.rows if (row.dataset, row.arm) == (dataset, arm))

    def pair(self, dataset: str, arm: str, measure: str = "last") -> PairSummary | None:
        """Return an arm's comparison with the reference; None for the reference itself and what was not measured."""
        same = (p for p in self.pairs if (p.dataset, p.arm, p.measure) == (dataset, arm, measure))
        return next(same, None)

    def best_arm(self, dataset: str, measure: str = "last") -> BestArm | None:
        """Return the best arm on a data set; None if the metric was not measured."""
        return next((b for b in self.best if (b.dataset, b.measure) == (dataset, measure)), None)

    def is_bold(self, dataset: str, arm: str, measure: str = "last") -> bool:
        """Whether an arm's mean may stand in bold: it is shown to be better than every other arm's."""
        best = self.best_arm(dataset, measure)
        return best is not None and best.supported and arm in best.arms

    def record(self) -> dict[str, Any]:
        """Return plain JSON: numbers that are none are null. Cells are left out; their own files hold them."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "cells"}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
