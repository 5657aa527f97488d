"""Reading a study from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.core.errors import ConfigError
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures, FailedCell
from fedsim.study.folder import StudyFolder, read_subject, subject_config
from fedsim.study.outcome import StudySummary
from fedsim.study.reading import read_figures
from fedsim.study.summary import summarise


def load_study(path: str | Path) -> tuple[StudyConfig, StudySummary]:
    """Read a study as far as it is done.

    Raises
    ------
    ConfigError
        If the folder holds no study.
    """
    path = Path(path)
    held = read_subject(path)
    if held is None:
        raise ConfigError(f"{path} holds no study; give the folder that fedsim compare has written to")
    config = subject_config(held).model_copy(update={"name": held["name"]})
    failed = [FailedCell(**values) for values in StudyFolder(path).read("failures.json") or []]
    return config, summary_of(config, path, failed)


def summary_of(config: StudyConfig, path: Path, failed: Sequence[FailedCell]) -> StudySummary:
    """Summarise the finished cells of a study's folder.

    Parameters
    ----------
    config
        The study, with its name.
    failed
        Cells without figures.
    """
    return summarise(config, figures_of(config, path, failed), failed)


def figures_of(config: StudyConfig, path: Path, failed: Sequence[FailedCell]) -> list[CellFigures]:
    """Return the figures of all finished cells of a study's folder."""
    without = {(cell.dataset, cell.arm, cell.seed) for cell in failed}
    target = config.target if isinstance(config.target, dict) else dict.fromkeys(config.datasets, config.target)
    found = []
    for dataset in config.datasets:
        for arm in config.arms:
            for seed in config.arm_seeds.get(arm, config.seeds):
                run = path / "cells" / dataset / arm / f"seed-{seed}"
                if (dataset, arm, seed) not in without and (run / "summary.json").exists():
                    found.append(
                        read_figures(run, dataset, arm, seed, target=target.get(dataset), devices=config.devices)
                    )
    return found
