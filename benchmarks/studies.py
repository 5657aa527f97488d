"""Shared by accuracy studies: arms, records of finished runs, and parallel runs.

Each run adds one line of JSON to the records, and recorded runs are skipped, so an interrupted study can be
continued.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

END_ALONE = (
    "executor=local",
    "checkpoint.every=1000000",
    "evaluation.every=1000000",
    "tracking.plots=false",
    "tracking.client_records=false",
)
"""Overrides of runs of which only the end counts."""


@dataclass(frozen=True)
class Arm:
    """One way to train, compared with the others on the same work and with the same tuning budget."""

    name: str
    group: str
    """Heading of the table that the arm belongs to."""
    overrides: tuple[str, ...] = ()
    """Changes of the base config."""
    everywhere: bool = False
    """Run on every dataset; the others on the first alone."""


@dataclass(frozen=True)
class Work:
    """One run of a study."""

    config: str
    """Path of the config."""
    fields: dict[str, Any]
    """What distinguishes the run within the study; part of its record."""
    base: Sequence[str]
    """Overrides that the fields stand for, or that all runs share."""
    overrides: Sequence[str]
    """Overrides of the run's arm; part of its record."""


def run(study: str, work: Work) -> dict[str, Any]:
    """Do one run in a separate process and return its record."""
    import fedsim
    from fedsim.configuration.schema import read_config

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w") as nowhere:
        config = read_config(work.config, [*work.base, *work.overrides, f"output={scratch}/run"])
        summary = fedsim.run(config, console=Console(file=nowhere), progress=False)
        events = [json.loads(line) for line in Path(scratch, "run/metrics.jsonl").read_text().splitlines()]
    evaluated = [event for event in events if event.get("global_loss") is not None]
    return {
        "benchmark": study,
        **work.fields,
        "value": summary["global_metric"],
        "unit": summary["metric_name"],
        "ratio": None,
        "ratio_to": None,
        "runs": 1,
        "start": summary["first_global_metric"],
        "loss": evaluated[-1]["global_loss"],
        "course": [summary["first_global_metric"], *(e["global_metric"] for e in evaluated if e["event"] == "round")],
        "parameters": summary["exchanged_parameters"],
        "personalised": summary["personalised_metric"],
        "layers": summary["layers"],
        "megabytes_up": summary["bytes_up"] / 1e6,
        "megabytes_down": summary["bytes_down"] / 1e6,
        "seconds": time.monotonic() - started,
        "overrides": list(work.overrides),
    }


class Records:
    """The JSON lines of finished runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the records with these values."""
        return [row for row in self.rows if all(row[key] == value for key, value in fields.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Append a record."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def execute(study: str, works: Iterable[Work], records: Records, processes: int, console: Console) -> None:
    """Do the unrecorded runs, each process with one thread."""
    missing = [work for work in works if not records.find(**work.fields)]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, study, work): work for work in missing}
        for done, future in enumerate(as_completed(running), 1):
            row = future.result()
            records.add(row)
            what = ", ".join(f"{name} {value}" for name, value in running[future].fields.items())
            console.print(f"{done}/{len(running)} {what}: {row['value']:.4f} ({row['seconds']:.0f} s)")
