"""Records of a point's finished run: read from its run folder, accounted, and turned into rows."""

from __future__ import annotations

import json
from collections import defaultdict
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
    "clients_ok": "int32",
    "client_steps": "int64",
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
    bytes_down: int
    bytes_up: int


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

    def rows(self) -> list[dict[str, Any]]:
        """Return the run's rows of ``scaling.parquet``."""
        point = {"clients": self.point.clients, "cohort": self.point.cohort, "actors": str(self.point.actors)}
        return [
            {
                **point,
                "workers": self.workers,
                "repeat": self.repeat,
                "round": each.round,
                "seconds_wall": each.parts.total / self.workers,
                "seconds_train": each.times.train,
                "seconds_server": each.times.server,
                "seconds_evaluate": each.times.evaluate,
                **{f"actor_seconds_{name}": seconds for name, seconds in asdict(each.parts).items()},
                "clients_ok": each.clients_ok,
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
        busy = _busy_seconds(folder / "clients.parquet")
        # The start is evaluated within the first round.
        marks = [event for event in events if event["event"] in ("fuse", "round")]
        rounds = tuple(_round(before, event, busy[event["round"]], workers) for before, event in pairwise(marks))
        return Run(
            point=point,
            repeat=repeat,
            workers=workers,
            rounds=rounds,
            start_seconds=_epoch(marks[0]) - mark["started"],
            end_seconds=mark["ended"] - _epoch(marks[-1]),
            peak_memory=summary.get("peak_memory_bytes") or {},
            versions=summary["versions"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{folder} does not hold the records of a finished run ({type(error).__name__}: {error}); remove "
            f"{mark_file} to have it run again"
        ) from error


def _round(before: dict[str, Any], event: dict[str, Any], busy: tuple[float, ...], workers: int) -> Round:
    times = RoundTimes(
        # Events have millisecond times: the round's own clock is finer, but leaves out the time between rounds.
        wall=max(event["seconds"] - before["seconds"], event["seconds_round"]),
        train=event["seconds_train"],
        server=event["seconds_server"],
        evaluate=event["seconds_evaluate"],
        busy=busy,
        actors=workers,
    )
    return Round(
        round=event["round"],
        times=times,
        parts=account(times),
        clients_ok=event["clients_ok"],
        client_steps=event["client_steps"],
        bytes_down=event["bytes_down"],
        bytes_up=event["bytes_up"],
    )


def _busy_seconds(path: Path) -> dict[int, tuple[float, ...]]:
    """Return, by round, the seconds that each worker spent on clients, failed ones included."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(columns=["round", "node", "pid", "seconds"]).group_by(["round", "node", "pid"])
    busy: dict[int, list[float]] = defaultdict(list)
    for row in table.aggregate([("seconds", "sum")]).to_pylist():
        busy[row["round"]].append(row["seconds_sum"])
    return {number: tuple(sorted(seconds)) for number, seconds in busy.items()}


def _epoch(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def median(values: list[float]) -> float:
    """Return the median; NaN if there are no values."""
    return float(np.median(values)) if values else float("nan")
