"""Each arm against the reference, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from fedsim.study import statistics, words
from fedsim.study.figures import CellFigures
from fedsim.study.grid import Grid
from fedsim.study.measures import COMPARED, TO_TARGET
from fedsim.study.outcome import CostRatio, Difference, McNemar, Mismatch, PairSummary, Verdict

Correct = Callable[[CellFigures], "Sequence[bool] | np.ndarray | None"]
"""Returns whether a run's last global predictions are right, example by example; None if they were not kept."""

_Right = Callable[[str, str, int], "Sequence[bool] | np.ndarray | None"]


def pair_up(grid: Grid, correct: Correct) -> tuple[PairSummary, ...]:
    """Compare every arm with the reference on every data set, by every metric that was measured.

    p is adjusted by Holm over the data sets of one arm and one metric: the family is the question "is this arm better than
    the reference?". It is not adjusted over arms, each of which is a question of its own, nor over metrics.
    """
    found: dict[tuple[str, str, str], PairSummary] = {}
    right = cache(
        lambda dataset, arm, seed: correct(grid.finished[dataset, arm][seed])
    )  # the reference is in every pair
    for arm in grid.arms:
        for measure in COMPARED if arm != grid.reference else ():
            datasets = [d for d in grid.datasets if measure == "last" or grid.measured(d, measure)]
            for dataset, tested in zip(datasets, _family(grid, arm, measure, datasets), strict=True):
                found[dataset, arm, measure] = _pair(grid, dataset, arm, measure, tested, right)
    order = ((d, a, m) for d in grid.datasets for a in grid.arms for m in COMPARED)
    return tuple(found[place] for place in order if place in found)


def cost_ratios(grid: Grid) -> tuple[CostRatio, ...]:
    """Compare what every arm and the reference need to reach the target, over the seeds in which both do."""
    ratios = []
    for dataset in grid.datasets:
        for arm in (arm for arm in grid.arms if arm != grid.reference):
            for measure in TO_TARGET:
                first, second = (grid.values(dataset, name, measure) for name in (grid.reference, arm))
                # who is there before the first round needs nothing: no ratio
                logs = [math.log(second[s] / first[s]) for s in first if first[s] > 0 and second.get(s, 0) > 0]
                if logs:
                    ratio = math.exp(math.fsum(logs) / len(logs))
                    ratios.append(CostRatio(dataset, grid.reference, arm, measure, len(logs), ratio))
    return tuple(ratios)


def mismatches(grid: Grid, dataset: str, arm: str, seeds: Sequence[int]) -> tuple[Mismatch, ...]:
    """Return the pairs of runs that did not have the same contents and cohorts."""
    found = []
    for seed in seeds:
        first, second = (grid.finished[dataset, name][seed] for name in (grid.reference, arm))
        names = sorted({*first.contents, *second.contents})
        differs = [name for name in names if first.contents.get(name) != second.contents.get(name)]
        if first.cohorts != second.cohorts:
            differs.append("cohorts")
        if differs:
            found.append(Mismatch(seed, tuple(differs)))
    return tuple(found)


class _Tested(NamedTuple):
    """A comparison within its family."""

    difference: Difference
    p: float
    least: float
    family: int


def _family(grid: Grid, arm: str, measure: str, datasets: Sequence[str]) -> list[_Tested]:
    """Compare an arm with the reference on each data set."""
    found = [statistics.paired(grid.values(d, grid.reference, measure), grid.values(d, arm, measure)) for d in datasets]
    ps = statistics.holm([d.p for d in found])
    least = statistics.holm([d.least_p for d in found])
    return [_Tested(*numbers, sum(d.n > 0 for d in found)) for numbers in zip(found, ps, least, strict=True)]


def _pair(grid: Grid, dataset: str, arm: str, measure: str, tested: _Tested, right: _Right) -> PairSummary:
    difference, p, least, family = tested
    names = (grid.reference, arm)
    seeds = tuple(difference.values)
    unequal = mismatches(grid, dataset, arm, seeds)
    verdict = _verdict(difference, p, least)
    where = words.in_measure(measure, grid.metric_name(dataset)) + words.on_dataset(dataset, grid.datasets)
    sentence = words.compared(grid.reference, arm, where, difference, verdict, p, least, family)
    missing = {name: tuple(s for s in grid.seeds[name] if s not in seeds) for name in names}
    lost = {name: [s for s in missing[name] if s not in grid.values(dataset, name, measure)] for name in names}
    others = {grid.reference: grid.seeds[arm], arm: grid.seeds[grid.reference]}
    alone = {name: [s for s in missing[name] if s not in lost[name] and s not in others[name]] for name in names}
    return PairSummary(
        dataset=dataset,
        reference=grid.reference,
        arm=arm,
        measure=measure,
        difference=difference,
        p_holm=p,
        least_p_holm=least,
        family=family,
        verdict=verdict,
        sentence=sentence + words.left_out(difference.n > 0, lost, alone, unequal),
        missing=missing,
        mismatches=unequal,
        mcnemar=_mcnemar(grid, dataset, arm, seeds, unequal, right) if measure == "last" else None,
    )


def _verdict(difference: Difference, p: float, least: float) -> Verdict:
    if not difference.n:
        return "no pairs"
    if difference.ties == difference.n:
        return "equal"
    if least > statistics.ALPHA:
        return "cannot show"
    if p > statistics.ALPHA:
        return "not shown"
    return "better" if difference.mean > 0 else "worse"


def _mcnemar(
    grid: Grid, dataset: str, arm: str, seeds: Sequence[int], unequal: Sequence[Mismatch], right: _Right
) -> dict[int, McNemar] | None:
    other_examples = {pair.seed for pair in unequal if "validation_data" in pair.differs}
    found = {}
    for seed in seeds:
        runs = [right(dataset, name, seed) for name in (grid.reference, arm)]
        if runs[0] is not None and runs[1] is not None and seed not in other_examples:
            found[seed] = statistics.mcnemar(runs[0], runs[1])
    return found or None
