"""The summary of a study: figures over seeds, and what the differences between arms show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.study import statistics, words
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures, FailedCell
from fedsim.study.grid import Grid, make_grid
from fedsim.study.leading import best_arms
from fedsim.study.measures import MEASURES, bounds
from fedsim.study.outcome import ArmSummary, PairSummary, StudySummary
from fedsim.study.pairing import Correct, cost_ratios, pair_up
from fedsim.study.predictions import right_examples


def summarise(
    study: StudyConfig, cells: Sequence[CellFigures], failed: Sequence[FailedCell], correct: Correct = right_examples
) -> StudySummary:
    """Summarise a study.

    Parameters
    ----------
    study
        The study, with its ``name``.
    cells
        Finished cells, in any order. A figure that is NaN or infinite is no value: the seed counts as one that has none,
        for this figure, and stands in the sentences.
    failed
        Cells that failed. Planned cells that are in neither count as not run.
    correct
        Returns whether a run's predictions are right, for McNemar's test; None if they were not kept.

    Raises
    ------
    ConfigError
        If the reference is no arm, or arms report different metrics on a data set.
    ValueError
        If a cell is not of this study, or is there twice.
    """
    grid = make_grid(study, cells, failed)
    pairs = pair_up(grid, correct)
    rows = tuple(_row(grid, dataset, arm) for dataset in grid.datasets for arm in grid.arms)
    return StudySummary(
        name=study.name or "study",
        reference=grid.reference,
        arms=grid.arms,
        datasets=grid.datasets,
        rows=rows,
        pairs=pairs,
        ratios=cost_ratios(grid),
        best=best_arms(grid),
        failed=tuple(cell for row in rows for cell in row.failed),
        notes=tuple(_notes(grid, pairs)),
        cells=tuple(cell for row in rows for cell in grid.finished[row.dataset, row.arm].values()),
        alpha=statistics.ALPHA,
        level=statistics.LEVEL,
    )


def _row(grid: Grid, dataset: str, arm: str) -> ArmSummary:
    cells = grid.finished[dataset, arm]
    metric_name = grid.metric_name(dataset)
    figures = {
        name: statistics.estimate(
            {seed: measure.of(cell) for seed, cell in cells.items()}, bounds=bounds(measure, metric_name)
        )
        for name, measure in MEASURES.items()
        if measure.kind != "text" or grid.is_written(name)
    }
    return ArmSummary(
        dataset=dataset,
        arm=arm,
        is_reference=arm == grid.reference,
        metric_name=metric_name,
        seeds=grid.seeds[arm],
        finished=tuple(cells),
        failed=grid.failed[dataset, arm],
        target=next((cell.target for cell in cells.values() if math.isfinite(cell.target)), math.nan),
        target_metric=next((cell.target_metric for cell in cells.values()), ""),
        reached=tuple(seed for seed, cell in cells.items() if cell.target_round is not None),
        figures=figures,
    )


def _notes(grid: Grid, pairs: Sequence[PairSummary]) -> list[str]:
    notes = [
        "Mean ± SD over seeds; the interval of an arm alone is 95 % Student t, cut to the range that the figure can have."
    ]
    if any(pair.difference.n for pair in pairs):
        notes.append(
            "Differences are paired by seed: mean, 95 % BCa bootstrap interval (too narrow for few seeds), two-sided "
            "sign-flip test of all sign patterns"
            + (", or of 99,999 drawn ones" if any(p.difference.flips != "exact" for p in pairs) else "")
            + "."
        )
        notes.append(_families(grid, pairs))
    notes += _too_few(pairs)
    if len(grid.arms) > 1:
        notes.append(
            "Bold: better than every other arm, with the largest p of these comparisons, adjusted by Holm over data sets, at "
            "most 0.05."
        )
    notes += _targets(grid)
    failed = [cell for cells in grid.failed.values() for cell in cells]
    if failed:
        total = len(grid.datasets) * sum(map(len, grid.seeds.values()))
        notes.append(f"{len(failed)} of {words.count(total, 'cell')} have no figures; see what they say.")
    notes += _not_numbers(grid)
    return notes


def _targets(grid: Grid) -> list[str]:
    """Say of which text metric a target is."""
    found = {
        dataset: cell.target_metric
        for (dataset, _), cells in grid.finished.items()
        for cell in cells.values()
        if cell.target_metric
    }
    return [
        f"The target{words.on_dataset(dataset, grid.datasets)} is one of {MEASURES[f'generated.{name}'].label} of written "
        "responses, in the rounds in which the model wrote."
        for dataset, name in found.items()
    ]


def _families(grid: Grid, pairs: Sequence[PairSummary]) -> str:
    family = max(pair.family for pair in pairs)
    arms = len(grid.arms) - 1
    over = (
        f"p is adjusted by Holm over the {family} data sets of each arm and metric"
        if family > 1
        else "p is not adjusted"
    )
    if arms == 1:
        return f"{over}."
    also = ", not over arms" if family > 1 else ""
    return f"{over}{also}: {arms} arms are {arms} questions, and of 20 true nulls one is expected below 0.05."


def _too_few(pairs: Sequence[PairSummary]) -> list[str]:
    """Say once for each number of pairs what cannot be concluded from it, of the most data sets that it is adjusted over."""
    found: dict[int, tuple[int, float]] = {}
    for pair in (p for p in pairs if p.verdict == "cannot show"):
        n = pair.difference.n
        found[n] = max(found.get(n, (0, 0.0)), (pair.family, pair.least_p_holm))
    notes = []
    for n, (family, least) in sorted(found.items()):
        over = f" ({least:.2g} adjusted over {family} data sets)" if least > statistics.least_p(n) else ""
        needed = f"{statistics.least_p(n):.2g}{over}; {statistics.seeds_needed(family)} could"
        notes.append(f"{words.count(n, 'pair')} cannot show a difference: the least p is {needed}.")
    return notes


def _not_numbers(grid: Grid) -> list[str]:
    """Name the finished runs without a last metric: they count as failed wherever it is compared."""
    notes = []
    for (dataset, arm), cells in grid.finished.items():
        lost = [seed for seed in cells if seed not in grid.values(dataset, arm, "last")]
        if lost:
            where = words.on_dataset(dataset, grid.datasets)
            notes.append(
                f"The last metric of {arm}{where} is not a number in {words.seeds_text(lost)}: left out of its mean."
            )
    return notes
