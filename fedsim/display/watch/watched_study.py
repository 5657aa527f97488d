"""A study that is looked at from time to time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.display.progress import sparkline
from fedsim.display.report import MISSING, format_clock, format_metric
from fedsim.display.watch.run_state import State
from fedsim.display.watch.watched_run import WatchedRun
from fedsim.records.following import is_held
from fedsim.study.folder import StudyFolder, read_subject, subject_config

_RUNNING = 12
"""Running cells that are shown."""


class WatchedStudy:
    """The folder of a study; :meth:`look` reads what is new.

    Attributes
    ----------
    cells
        Folder of each cell that is reported, by its name.
    finished, failed
        Names of cells that have ended.
    running
        Runs that go on, of the search too, by name.
    searched
        Finished runs of the search.
    """

    def __init__(self, path: Path) -> None:
        held = read_subject(path)
        assert held is not None
        config = subject_config(held, path)
        self.path = path
        self.name = str(config.name)
        self.state: State = "running"
        self.cells = {
            f"{dataset}, {arm}, seed {seed}": path / "cells" / dataset / arm / f"seed-{seed}"
            for dataset in config.datasets
            for arm in config.arms
            for seed in config.arm_seeds.get(arm, config.seeds)
        }
        self.finished: list[str] = []
        self.failed: list[str] = []
        self.running: dict[str, WatchedRun] = {}
        self.searched = 0

    def look(self) -> None:
        """Read what is new."""
        held = is_held(self.path / ".lock")  # before the cells: the study may end just now
        self.finished = [name for name, path in self.cells.items() if (path / "summary.json").exists()]
        trials = {f"search, {'/'.join(path.parts[-3:])}": path for path in self.path.glob("search/*/*/trial-*")}
        self.searched = sum((path / "summary.json").exists() for path in trials.values())
        going = {name: path for name, path in {**trials, **self.cells}.items() if _goes_on(path)}
        self.running = {name: self.running.get(name) or WatchedRun(path) for name, path in going.items()}
        for run in self.running.values():
            run.look()
        self.failed = [name for name in self._failures() if name not in self.finished and name not in self.running]
        ended = len(self.finished) + len(self.failed) == len(self.cells) and not self.running
        done: State = "failed" if self.failed else "finished"
        self.state = "running" if held or (held is None and not ended) else done if ended else "silent"

    def _failures(self) -> list[str]:
        found = StudyFolder(self.path).read("failures.json") or []
        return [f"{each['dataset']}, {each['arm']}, seed {each['seed']}" for each in found if "seed" in each]

    def summary(self) -> None:
        """Return nothing: a study's results are a table of ``fedsim compare``, or its report."""

    def record(self) -> dict[str, Any]:
        """Return what is known as names and values, for ``--json``."""
        return {
            "what": "study",
            "place": str(self.path),
            "name": self.name,
            "state": self.state,
            "ended": None if self.state == "running" else self.words,
            "cells": len(self.cells),
            "finished": len(self.finished),
            "failed": len(self.failed),
            "searched": self.searched,
            "running": [
                {
                    "cell": name,
                    "rounds": each.run.last_round,
                    "rounds_total": each.run.total_rounds,
                    "metric": each.run.metrics[-1] if each.run.metrics else None,
                }
                for name, each in self.running.items()
            ],
        }

    @property
    def words(self) -> str:
        """How the study stands, in words."""
        counts = f"{len(self.finished)} of {len(self.cells)} runs finished"
        counts += f", {len(self.failed)} failed" if self.failed else ""
        counts += f", {self.searched} of the search" if self.searched else ""
        if self.state == "silent":
            return f"{counts}; no process works on it; the same command continues it"
        return f"{counts}, {len(self.running)} running" if self.state == "running" else counts

    def picture(self, width: int, ascii_only: bool = False) -> RenderableType:
        """Return the study as it stands, for a terminal of some width."""
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f" {self.name}  ", style="bold").append(self.state, style="cyan" if self.state == "running" else "")
        head.append(f"  {self.words}", style="dim")
        total, done = len(self.cells), len(self.finished)
        bar = ProgressBar(total=total, completed=done, width=max(10, min(80, width - 4)))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
        columns = ["running", "round", "metric", "left"] + ["course"] * (width >= 100 and not ascii_only)
        for name in columns:
            table.add_column(name, justify="left" if name in ("running", "course") else "right", no_wrap=True)
        for name, each in list(self.running.items())[:_RUNNING]:
            run, metrics = each.run, each.run.metrics
            left = None if run.seconds_left is None else run.seconds_left - each.age_seconds
            cells = [name, f"{run.last_round}/{run.total_rounds or MISSING}"]
            cells += [format_metric(metrics[-1] if metrics else None), format_clock(left), sparkline(metrics, 30)]
            table.add_row(*(Text(cell) for cell in cells[: len(columns)]))
        failed = [Text(f" failed: {name}", style="red") for name in self.failed[:5]]
        return Group(head, bar, *([table] if self.running else []), *failed)

    def lines(self) -> Iterator[str]:
        """Yield how the study stands, as lines."""
        yield f"study  {self.name}  {self.state}  {self.words}"
        for name, each in self.running.items():
            metrics = each.run.metrics
            metric = format_metric(metrics[-1] if metrics else None)
            yield f"run    {name}  round {each.run.last_round}/{each.run.total_rounds or MISSING}  metric {metric}"


def _goes_on(path: Path) -> bool:
    """Whether a run is being made in a folder."""
    log = path / "metrics.jsonl"
    return log.exists() and not (path / "summary.json").exists() and is_held(log) is not False
