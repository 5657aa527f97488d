"""Reading the figures of a run from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.records.columns import TEXT_METRIC_WORDS
from fedsim.records.recorded_run import RecordedRun, load_run
from fedsim.study.course import Course, cohorts_digest
from fedsim.study.devices import DevicesConfig
from fedsim.study.figures import CellFigures
from fedsim.study.per_client import client_figures

_ABOUT = (
    "name", "method", "tuner", "trained", "task", "model", "executor", "workers", "clients", "num_layers", "fuse",
    "config_hash", "vectors_up", "vectors_down", "client_steps", "select_on", "selected_round", "selected_global_metric",
    "stopped", "versions", "plugins", "seconds_simulated",
)  # fmt: skip
"""Entries of a summary that describe the run."""
_NEEDED = ("num_classes", "start_personalised_metric", "sent_parameters", "trained_parameters", "stored_parameters")
"""Entries that runs of earlier versions lack."""


def read_figures(
    folder: str | Path,
    dataset: str,
    arm: str,
    seed: int,
    *,
    target: float | None = None,
    target_metric: str | None = None,
    devices: DevicesConfig | None = None,
) -> CellFigures:
    """Return the figures of a finished run.

    Parameters
    ----------
    folder
        Path or URL of the run's folder.
    dataset, arm, seed
        The run's place in a study.
    target
        Metric to reach, for rounds, bytes and seconds to it.
    target_metric
        The text metric that it is a value of; None for the task's metric on the validation examples.
    devices
        Devices and network for the modelled time of runs without a clock of their own; NaN without.

    Raises
    ------
    ConfigError
        If the folder holds no finished run.
    CheckpointError
        If its records cannot be read, or are those of an earlier version.
    """
    run = load_run(folder)
    if run.summary is None:
        raise ConfigError(
            f"{run.location} holds no finished run, only {max(0, run.rounds.num_rows - 1)} rounds on record; finish it "
            f"with fedsim run CONFIG --resume output={run.location}"
        )
    if lacking := [name for name in _NEEDED if name not in run.summary]:
        raise CheckpointError(
            f"{run.location} was written by an earlier version of fedsim, without {lacking[0]} in its summary; run it again"
        )
    if missing := _missing(run, run.summary):
        raise CheckpointError(f"{run.location}/{missing} is gone, or holds no rows")
    if devices is not None and run.config.world.devices is not None:
        raise ConfigError(
            f"{run.location} has a clock of its own (world.devices), and the study models devices, too; leave the key devices "
            "out of the study"
        )
    course = Course.of(run.rounds, run.clients, devices)
    return CellFigures(
        dataset,
        arm,
        seed,
        run.location,
        **_metrics(run.summary),
        **client_figures(run.personal),
        **_to_target(course, target, target_metric),
        **_costs(run.summary),
        **_on_devices(run.summary),
        seconds_modelled=course.seconds_modelled,
        curve=course.curve(),
        **_sameness(run, run.summary),
        predictions=f"{run.location}/predictions.parquet" if run.predictions.num_rows else "",
        about={name: run.summary.get(name) for name in _ABOUT},
    )


def _missing(run: RecordedRun, summary: Mapping[str, Any]) -> str | None:
    """Return the name of a table that a run's summary says there must be; a damaged one raises an error."""
    _ = run.labels
    if not run.rounds.num_rows:
        return "rounds.parquet"
    return None if summary["personalised_metric"] is None or run.personal.num_rows else "personal.parquet"


def _sameness(run: RecordedRun, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells whether two runs can be paired, and which layers they exchange."""
    events = run.events()
    scores = [event["scores"] for event in events if event["event"] == "layers"]
    return {
        "contents": dict(summary["contents"]),
        "cohorts": cohorts_digest(run.clients, events),
        "layers": tuple(summary["layers"]),
        "scores": tuple(scores[-1] or ()) if scores else (),
    }


def _metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metric_name": summary["metric_name"],
        "num_classes": summary["num_classes"],
        "rounds": summary["rounds"],
        "first": _number(summary["first_global_metric"]),
        "last": _number(summary["global_metric"]),
        "best": _number(summary["best_global_metric"]),
        "best_round": summary["best_global_round"],
        "first_personalised": _number(summary["start_personalised_metric"]),
        "personalised": _number(summary["personalised_metric"]),
        "best_personalised": _number(summary["best_personalised_metric"]),
        **_written(summary.get("generated") or {}),
    }


def _written(generated: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the text metrics of what the models of a run wrote, as far as they did."""
    parts = {
        "generated": generated,
        "first_generated": generated.get("start"),
        "personal_generated": generated.get("personal"),
    }
    return {
        field: {name: float(part[name]) for name in TEXT_METRIC_WORDS if part.get(name) is not None}
        for field, part in parts.items()
        if part
    }


def _to_target(course: Course, target: float | None, metric: str | None) -> dict[str, Any]:
    if target is None:
        return {}
    about = {"target": target, "target_metric": metric or ""}
    reached = course.reaching(target, metric)
    if reached is None:
        return about
    return {
        **about,
        "target_round": reached.round,
        "target_bytes": reached.bytes,
        "target_seconds_published": reached.seconds_published,
        "target_seconds_modelled": reached.seconds_modelled,
        "target_seconds_wall": reached.seconds_wall,
    }


def _costs(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trained_parameters": summary["trained_parameters"],
        "exchanged_parameters": summary["sent_parameters"],
        "stored_parameters": summary["stored_parameters"],
        **{name: summary[name] for name in ("bytes_up", "bytes_down", "client_updates", "client_tokens")},
        "epsilon": _number((summary.get("privacy") or {}).get("epsilon")),
        "seconds_wall": _number(summary["seconds_total"]),
        "seconds_published": _number(summary["seconds_published"]),
    }


def _number(value: float | None) -> float:
    """Return a number of a summary, in which NaN is null."""
    return math.nan if value is None else float(value)


def _on_devices(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return who took part in a run on simulated devices."""
    shares = summary.get("participation_by_speed") or [None]
    return {
        "device_utilisation": _number(summary.get("device_utilisation")),
        "slowest_fifth_share": _number(shares[-1]),
        "clients_never_seen": _number(summary.get("clients_never_seen")),
    }
