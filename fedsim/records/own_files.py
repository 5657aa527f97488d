"""Which files of a run folder are the run's own, and their removal."""

from __future__ import annotations

import shutil
from pathlib import Path

_PATTERNS = (
    "config.yaml",
    "summary.json",
    "rounds.parquet",
    "rounds-[0-9]*.parquet",
    "clients.parquet",
    "clients-[0-9]*.parquet",
    "visits.parquet",
    "visits-[0-9]*.parquet",
    "devices.parquet",
    "personal.parquet",
    "predictions.parquet",
    "generations.parquet",
    "generations-[0-9]*.parquet",
    "labels.parquet",
    "report.html",
    "trackers.json",
)
_FOLDERS = ("plots", "prompt", "checkpoints", "tensorboard", "wandb", "ray-logs")


def remove_run(path: Path) -> None:
    """Remove a run's files and folders except the log, so that a crash midway still leaves a run folder."""
    for name in _FOLDERS:
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)
    for pattern in _PATTERNS:
        for file in path.glob(pattern):
            file.unlink()
