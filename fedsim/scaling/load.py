"""A scaling study read back from its folder, whole or as far as it has come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsim.core.errors import CheckpointError
from fedsim.scaling.points import Point
from fedsim.scaling.prediction import Predictions
from fedsim.scaling.study import HOLDS, Failure, finished_runs
from fedsim.scaling.summary import StudySummary, summarise


def is_scaling_study(folder: Path) -> bool:
    """Whether a folder holds a scaling study."""
    try:
        held = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.get("holds") == HOLDS


_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)


def load_scaling(folder: Path) -> StudySummary:
    """Return the summary of a study from its finished runs; failures, notes and predictions are those of the last command.

    Raises
    ------
    CheckpointError
        If a finished run or ``scaling.json`` cannot be read.
    """
    path = folder / "scaling.json"
    try:
        record = _record(path)
        failures = [_failure(entry) for entry in record.get("failures", ())]
        notes = [str(note) for note in record.get("notes", ())]
        predictions = Predictions.of_record(record.get("predictions", {}))
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    runs = finished_runs(folder / "points")
    own = summarise(runs, failures, ()).notes
    return summarise(runs, failures, [note for note in notes if note not in own], predictions)


def load_predictions(folder: Path) -> Predictions:
    """Return the predictions of the last command that ended; none before the first.

    Raises
    ------
    CheckpointError
        If ``scaling.json`` cannot be read.
    """
    path = folder / "scaling.json"
    try:
        return Predictions.of_record(_record(path).get("predictions", {}))
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _record(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as the summary of a scaling study ({error})")


def _failure(entry: dict[str, Any]) -> Failure:
    return Failure(Point(entry["clients"], entry["cohort"], entry["actors"]), entry["repeat"], entry["sentence"])
