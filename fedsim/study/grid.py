"""The cells of a study by data set, arm and seed: which finished, which failed, which have not run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.core.errors import ConfigError, listed
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures, FailedCell
from fedsim.study.measures import MEASURES

NOT_RUN = "it has not run"


@dataclass(frozen=True)
class Grid:
    """All cells of a study."""

    reference: str
    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    """By arm, as planned."""
    finished: dict[tuple[str, str], dict[int, CellFigures]]
    """By data set and arm, then by seed."""
    failed: dict[tuple[str, str], tuple[FailedCell, ...]]
    """By data set and arm; planned cells that nobody knows of stand here as well."""

    def values(self, dataset: str, arm: str, measure: str) -> dict[int, float]:
        """Return a figure by seed, of the seeds that have it."""
        found = {seed: MEASURES[measure].of(cell) for seed, cell in self.finished[dataset, arm].items()}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def measured(self, dataset: str, measure: str) -> bool:
        """Whether any run on a data set has a figure."""
        return any(self.values(dataset, arm, measure) for arm in self.arms)

    def is_written(self, measure: str) -> bool:
        """Whether any run has a figure of written responses; most studies have none of them."""
        return any(self.measured(dataset, measure) for dataset in self.datasets)

    def metric_name(self, dataset: str) -> str:
        """Return the name of the metric on a data set."""
        return next((cell.metric_name for arm in self.arms for cell in self.finished[dataset, arm].values()), "metric")


def make_grid(study: StudyConfig, cells: Sequence[CellFigures], failed: Sequence[FailedCell]) -> Grid:
    """Sort the cells of a study.

    Raises
    ------
    ConfigError
        If the reference is no arm, or arms report different metrics on a data set.
    ValueError
        If a cell is not of this study, or is there twice.
    """
    arms, datasets = tuple(study.arms), tuple(study.datasets)
    reference = study.reference or arms[0]
    if reference not in arms:
        raise ConfigError(f"reference is {reference}, but the arms are {listed(arms)}")
    seeds = {arm: tuple(sorted(set(study.arm_seeds.get(arm, study.seeds)))) for arm in arms}
    planned = {(dataset, arm, seed) for dataset in datasets for arm in arms for seed in seeds[arm]}
    known: dict[tuple[str, str, int], CellFigures | FailedCell] = {}
    every: list[CellFigures | FailedCell] = [*cells, *failed]
    for cell in every:
        place = (cell.dataset, cell.arm, cell.seed)
        if place not in planned or place in known:
            raise ValueError(f"{' / '.join(map(str, place))} is {'there twice' if place in known else 'no cell'}")
        known[place] = cell
    grid = Grid(reference, arms, datasets, seeds, {}, {})
    for dataset in datasets:
        for arm in arms:
            here = {s: known.get((dataset, arm, s)) or FailedCell(dataset, arm, s, NOT_RUN) for s in seeds[arm]}
            grid.finished[dataset, arm] = {s: cell for s, cell in here.items() if isinstance(cell, CellFigures)}
            grid.failed[dataset, arm] = tuple(cell for cell in here.values() if isinstance(cell, FailedCell))
        _one_metric(grid, dataset)
    return grid


def _one_metric(grid: Grid, dataset: str) -> None:
    names = {c.metric_name: arm for arm in grid.arms for c in grid.finished[dataset, arm].values()}
    if len(names) > 1:
        found = ", ".join(f"{arm} reports {name}" for name, arm in sorted(names.items()))
        raise ConfigError(
            f"arms report different metrics on {dataset} ({found}): they can be compared by one metric only"
        )
