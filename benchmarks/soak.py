"""Soak test: 300 rounds of real training, and what grows per round.

    python -m benchmarks.soak [--rounds 300] [--json FILE]

After a warm-up of a third of the rounds, the memory of every process should be constant: the slope of a line fitted to the
private memory of driver, actors and aggregator is given in KiB per round, over all measured rounds and over the last third,
and as the relative growth over the measured part. Objects in the store are counted between rounds, and Ray's spilled
bytes and log files at the end. The run's record on disk grows by design, by a fixed amount per round.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import psutil
import typer

from benchmarks.measure import Row, present

CONFIG: dict[str, Any] = {
    "group_size": 5,
    "data": {"train_examples": 400, "validation_examples": 100},
    "partition": {"kind": "iid", "clients": 40, "holdout_fraction": 0},
    "sampling": {"clients_per_round": 10},
    "prompt": {"length": 4},
    "client": {"epochs": 1},
    "tracking": {"plots": False},
    "ray": {"actors": 2},
}


class _Watched:
    """Samples all processes after each round."""

    def __init__(self) -> None:
        self.own: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """By process: round and bytes."""
        self.stored: list[int] = []
        self.log_bytes: list[int] = []
        self.spilled = 0
        self.records: list[int] = []

    def look(self, round: int, folder: Path) -> None:
        """Record the current memory of everything."""
        from benchmarks.memory import own_bytes, stored_bytes

        this = psutil.Process()
        self.own["driver"].append((round, own_bytes(this)))
        for process in this.children(recursive=True):
            try:
                name = " ".join(process.cmdline())
            except psutil.Error:
                continue
            for word in ("ClientActor", "AggregatorActor"):
                if f"ray::{word}" in name:
                    self.own[f"{word} {process.pid}"].append((round, own_bytes(process)))
        self.stored.append(stored_bytes())
        self.records.append(sum(path.stat().st_size for path in folder.rglob("*.jsonl")))
        self.log_bytes.append(_log_bytes())


def main(
    rounds: Annotated[int, typer.Option(min=30, help="Rounds.")] = 300,
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
) -> None:
    """Do the rounds and print what grew."""
    rows = measure(rounds)
    present(rows, records_file, f"{rounds} rounds, {rounds * 2 // 3} measured")


def measure(rounds: int) -> list[Row]:
    """Return the rows of a soak."""
    from fedsim.configuration.schema import build_config
    from fedsim.display.progress import Progress
    from fedsim.executors.make import make_executor
    from fedsim.records.run_folder import RunFolder
    from fedsim.simulation.context import RunContext
    from fedsim.simulation.loop import rounds as done_rounds
    from fedsim.simulation.preparation import prepare

    config = build_config({**CONFIG, "rounds": rounds})
    watched = _Watched()
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(rounds, "accuracy", quiet=True) as progress,
        RunFolder.create(Path(folder) / "run") as records,
        closing(make_executor(config, lambda: None, progress.note)) as executor,
    ):
        prepared = prepare(config, executor=executor)
        for done in done_rounds(RunContext(config, prepared, executor, records, progress)):
            watched.look(done.round, records.path)
        watched.spilled = _spilled_bytes()
    return _rows(watched, rounds)


def _rows(watched: _Watched, rounds: int) -> list[Row]:
    first = rounds // 3
    rows = []
    for name, seen in sorted(watched.own.items()):
        late = np.array([(round, value) for round, value in seen if round > first], dtype=float)
        if len(late) < 10:
            continue
        slope, level = np.polyfit(late[:, 0], late[:, 1], 1)
        growth = slope * (rounds - first) / (level + slope * first) * 100
        kind = name.split()[0]
        rows.append(Row("soak", f"{kind}: private memory, slope", slope / 1024, "KiB a round"))
        last = late[late[:, 0] > rounds * 2 // 3]
        rows.append(
            Row(
                "soak",
                f"{kind}: slope of the last third",
                np.polyfit(last[:, 0], last[:, 1], 1)[0] / 1024,
                "KiB a round",
            )
        )
        rows.append(Row("soak", f"{kind}: growth over the measured rounds", growth, "%"))
    stored = watched.stored[first:]
    rows.append(
        Row("soak", "object store: largest over smallest after a round", max(stored) / max(1, min(stored)), "x")
    )
    rows.append(Row("soak", "object store: mean of the last tenth over the first", _last_over_first(stored), "x"))
    rows.append(Row("soak", "spilled", watched.spilled, "bytes"))
    logs = watched.log_bytes
    rows.append(Row("soak", "Ray's logs, growth", (logs[-1] - logs[first]) / (rounds - first), "bytes a round"))
    growth = (watched.records[-1] - watched.records[first]) / (rounds - first)
    rows.append(Row("soak", "metrics.jsonl, growth", growth, "bytes a round"))
    return rows


def _last_over_first(values: list[int]) -> float:
    tenth = max(1, len(values) // 10)
    return float(np.mean(values[-tenth:]) / np.mean(values[:tenth]))


def _spilled_bytes() -> int:
    from fedsim.executors.cluster.ray_internals import store_statistics

    return int(getattr(store_statistics(), "spilled_bytes_total", 0))


def _log_bytes() -> int:
    from fedsim.executors.cluster import local_cluster

    folder = local_cluster.logs()
    return 0 if folder is None else sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(typer.run(main))
