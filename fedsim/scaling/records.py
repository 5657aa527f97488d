"""Records of a point's finished run: read from its run folder, accounted, and turned into rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import CheckpointError
from fedsim.scaling.accounting import PARTS, ActorSeconds, RoundTimes, account
from fedsim.scaling.points import Point
from fedsim.scaling.process import mark_of
from fedsim.scaling.trained import Trained, read_trained

SCALING_COLUMNS: dict[str, str] = {
    "clients": "int32",  # registered clients
    "cohort": "int32",  # clients of a round
    "actors": "string",  # as requested: a number, pool or per_client
    "workers": "int32",  # workers actually started
    "repeat": "int32",  # number of the run of this point; the first is 1
    "round": "int32",  # the first is 1 and includes warm-up
    "seconds_wall": "float64",  # from the end of the previous round to the end of this one
    "seconds_train": "float64",  # the driver waited for work groups ...
    "seconds_server": "float64",  # ... for the server ...
    "seconds_evaluate": "float64",  # ... and how long the evaluation took
    **dict.fromkeys((f"actor_seconds_{name}" for name in PARTS), "float64"),  # add up to workers * seconds_wall
    "seconds_simulated": "float64",  # on the virtual clock; null without one
    "clients_ok": "int32",
    "clients_trained": "int32",  # usable clients trained in this round; in buffered runs a later step may take them in
    "client_steps": "int64",  # of these
    "bytes_down": "int64",
    "bytes_up": "int64",
}
"""Columns of ``scaling.parquet`` with their Arrow types: one row per point, repeat and round."""


@dataclass(frozen=True)
class Round:
    """A round of a run."""

    round: int
    times: RoundTimes
    parts: ActorSeconds
    clients_ok: int
    client_steps: int
    """Local steps of the usable clients that were trained in it."""
    bytes_down: int
    bytes_up: int
    seconds_simulated: float | None = None
    """Length of the round on the virtual clock; None without one."""
    clients_trained: int | None = None
    """Usable clients that were trained in it, in a buffered run others than it took in; None where they are the same."""

    @property
    def updates(self) -> int:
        """Usable clients that were trained in it."""
        return self.clients_ok if self.clients_trained is None else self.clients_trained

    @property
    def wall(self) -> float:
        """Wall time in seconds."""
        return self.parts.total / self.times.actors


@dataclass(frozen=True)
class Run:
    """A finished run of a point."""

    point: Point
    repeat: int
    workers: int
    rounds: tuple[Round, ...]
    start_seconds: float
    """From the command to the first round: imports, Ray, data, actors, layers, evaluation of the start."""
    end_seconds: float
    """From the last round to the end of the process: personalised evaluation, last checkpoint, results."""
    peak_memory: dict[str, Any]
    """Peak resident bytes: ``driver``, ``workers`` (a list) and ``server``; None and empty where they were not measured."""
    versions: dict[str, str]
    layers: tuple[int, ...] = ()
    """Layers that it exchanged."""
    buffered: bool = False
    """Whether its rounds are the server steps of buffered rounds."""

    def rows(self) -> list[dict[str, Any]]:
        """Return the run's rows of ``scaling.parquet``."""
        point = {"clients": self.point.clients, "cohort": self.point.cohort, "actors": str(self.point.actors)}
        return [
            {
                **point,
                "workers": self.workers,
                "repeat": self.repeat,
                "round": each.round,
                "seconds_wall": each.wall,
                "seconds_train": each.times.train,
                "seconds_server": each.times.server,
                "seconds_evaluate": each.times.evaluate,
                **{f"actor_seconds_{name}": seconds for name, seconds in asdict(each.parts).items()},
                "seconds_simulated": each.seconds_simulated,
                "clients_ok": each.clients_ok,
                "clients_trained": each.updates,
                "client_steps": each.client_steps,
                "bytes_down": each.bytes_down,
                "bytes_up": each.bytes_up,
            }
            for each in self.rounds
        ]


def read_run(point: Point, repeat: int, folder: Path) -> Run:
    """Read a finished run from its folder and the marker file beside it.

    Raises
    ------
    CheckpointError
        If the folder does not hold the records of a finished run.
    """
    mark_file = mark_of(folder)
    try:
        mark = json.loads(mark_file.read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="surrogateescape")
        events = [json.loads(line) for line in text.split("\n") if line]
        workers = len(summary["workers"])
        # The start is evaluated within the first round.
        marks = [event for event in events if event["event"] in ("fuse", "round")]
        buffered = any(event.get("staleness_mean") is not None for event in marks)
        trained = read_trained(folder / "clients.parquet", len(marks) - 1, buffered=buffered)
        rounds = tuple(_round(before, event, trained[event["round"]], workers) for before, event in pairwise(marks))
        return Run(
            point=point,
            repeat=repeat,
            workers=workers,
            rounds=rounds,
            start_seconds=_epoch(marks[0]) - mark["started"],
            end_seconds=mark["ended"] - _epoch(marks[-1]),
            peak_memory=summary.get("peak_memory_bytes") or {},
            versions=summary["versions"],
            layers=tuple(next(event["layers"] for event in events if event["event"] == "layers")),
            buffered=buffered,
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{folder} does not hold the records of a finished run ({type(error).__name__}: {error}); remove "
            f"{mark_file} to have it run again"
        ) from error


def _round(before: dict[str, Any], event: dict[str, Any], trained: Trained, workers: int) -> Round:
    times = RoundTimes(
        # Events have millisecond times: the round's own clock is finer, but leaves out the time between rounds.
        wall=max(event["seconds"] - before["seconds"], event["seconds_round"]),
        train=event["seconds_train"],
        server=event["seconds_server"],
        evaluate=event["seconds_evaluate"],
        busy=trained.busy,
        actors=workers,
    )
    return Round(
        round=event["round"],
        times=times,
        parts=account(times),
        clients_ok=event["clients_ok"],
        client_steps=trained.steps,
        bytes_down=event["bytes_down"],
        bytes_up=event["bytes_up"],
        seconds_simulated=event.get("seconds_simulated"),
        clients_trained=trained.clients,
    )


def _epoch(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def median(values: list[float]) -> float:
    """Return the median; NaN if there are no values."""
    return float(np.median(values)) if values else float("nan")


def mean(values: list[float | None]) -> float | None:
    """Return the mean; None if there are no values, or one is missing."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found and len(found) == len(values) else None


def usual(seconds: list[float], *, buffered: bool) -> float:
    """Return the median time of a round; of buffered steps the mean, since most do not train and some train for several."""
    return float(np.mean(seconds)) if buffered and seconds else median(seconds)
