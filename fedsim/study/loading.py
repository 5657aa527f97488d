"""Reading a study from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.study.config import StudyConfig
from fedsim.study.existing import command_of_runs, compare_runs, runs_of
from fedsim.study.figures import CellFigures, FailedCell
from fedsim.study.folder import StudyFolder, command_of, damaged, read_subject, subject_config
from fedsim.study.outcome import StudySummary
from fedsim.study.reading import read_figures
from fedsim.study.summary import summarise


def load_study(path: str | Path) -> tuple[StudyConfig, StudySummary]:
    """Read a study as far as it is done, or a comparison of runs.

    Raises
    ------
    ConfigError
        If the folder holds no study, or a file of its own is damaged. If a run of a comparison is gone.
    """
    path = Path(path)
    held = read_subject(path)
    if held is None:
        if runs := runs_of(path):
            try:
                return compare_runs(runs)
            except ConfigError as error:
                again = f"fedsim compare RUN RUN ... --output {path} compares them where they are now"
                raise ConfigError(f"{error}; {again}") from None
        raise ConfigError(f"{path} holds no study; give the folder that fedsim compare has written to")
    config = subject_config(held, path)
    return config, summary_of(config, path, _failures(config, path))


def holds_study(path: Path) -> bool:
    """Whether :func:`load_study` can read a folder."""
    return read_subject(path) is not None or bool(runs_of(path))


def commands_of(path: Path) -> list[str]:
    """Return the command that ran the study, or compared the runs, of a folder."""
    held = read_subject(path)
    return [command_of_runs(path) if held is None else command_of(held, path)]


def load_search(config: StudyConfig, path: Path) -> Sequence[Mapping[str, Any]]:
    """Return what the search of a study has chosen, as :meth:`fedsim.study.search.Choice.record`; nothing without a search.

    Raises
    ------
    ConfigError
        If ``search.json`` is damaged.
    """
    found = StudyFolder(path).read("search.json") if config.search is not None else None
    choices = found if isinstance(found, list) else []
    whole = all(
        isinstance(choice, dict) and {"dataset", "arm", "chosen", "trials"} <= set(choice) for choice in choices
    )
    if not whole or choices != (found or []):
        raise damaged(path / "search.json")
    return choices


def _failures(config: StudyConfig, path: Path) -> list[FailedCell]:
    """Return the cells that failed, of those that the study has."""
    try:
        found = [FailedCell(**values) for values in StudyFolder(path).read("failures.json") or []]
    except TypeError:
        raise damaged(path / "failures.json") from None
    planned = {
        (dataset, arm, seed)
        for dataset in config.datasets
        for arm in config.arms
        for seed in config.arm_seeds.get(arm, config.seeds)
    }
    return [cell for cell in found if (cell.dataset, cell.arm, cell.seed) in planned]


def summary_of(config: StudyConfig, path: Path, failed: Sequence[FailedCell]) -> StudySummary:
    """Summarise the finished cells of a study's folder; a cell whose records are damaged counts as failed.

    Parameters
    ----------
    config
        The study, with its name.
    failed
        Cells without figures.
    """
    cells, lost = _figures(config, path, failed)
    return summarise(config, cells, [*failed, *lost])


def _figures(
    config: StudyConfig, path: Path, failed: Sequence[FailedCell]
) -> tuple[list[CellFigures], list[FailedCell]]:
    """Return the figures of all finished cells of a study's folder, and the cells whose records cannot be read."""
    without = {(cell.dataset, cell.arm, cell.seed) for cell in failed}
    found, lost = [], []
    for dataset in config.datasets:
        target, metric = config.target_of(dataset)
        for arm in config.arms:
            for seed in config.arm_seeds.get(arm, config.seeds):
                run = path / "cells" / dataset / arm / f"seed-{seed}"
                if (dataset, arm, seed) in without or not (run / "summary.json").exists():
                    continue
                try:
                    figures = read_figures(
                        run, dataset, arm, seed, target=target, target_metric=metric, devices=config.devices
                    )
                    found.append(figures)
                except (CheckpointError, ConfigError) as error:
                    lost.append(FailedCell(dataset, arm, seed, f"{error}; delete {run} and compare again"))
    return found, lost
