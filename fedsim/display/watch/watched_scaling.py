"""A scaling study that is looked at from time to time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.display.report import MISSING
from fedsim.display.watch.run_state import State
from fedsim.display.watch.watched_run import WatchedRun
from fedsim.records.following import is_held
from fedsim.scaling.load import load_predictions
from fedsim.scaling.prediction import Prediction, Predictions, later
from fedsim.scaling.process import mark_of
from fedsim.scaling.progress import LOCK, Job, Progress, named, words
from fedsim.scaling.records import Run, read_run, usual
from fedsim.scaling.table import format_round

_RUNS = 20
"""Runs that are shown while the study goes on."""
_BEFORE = 12
"""Of these, those that ended last."""


@dataclass(frozen=True)
class RunSeen:
    """A run of the study, as it stands."""

    job: Job
    state: Literal["finished", "failed", "running", "waiting"]
    rounds: int = 0
    """Done."""
    seconds_round: float | None = None
    """Usual wall time of a round after the first; while it runs, the mean of its last ones."""
    updates_per_second: float | None = None
    sentence: str | None = None
    """Why it failed."""

    def record(self) -> dict[str, Any]:
        """Return it as names and values."""
        return {
            **named(self.job),
            "state": self.state,
            "rounds": self.rounds,
            "seconds_round": self.seconds_round,
            "client_updates_per_second": self.updates_per_second,
            "sentence": self.sentence,
        }


class WatchedScaling:
    """The folder of a scaling study; :meth:`look` reads what is new.

    Attributes
    ----------
    seen
        All runs that were asked for, in order.
    predictions
        What the cost model predicts, once the command has ended.

    Raises
    ------
    ConfigError
        If the folder does not say what was asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.absolute().name
        self.state: State = "running"
        self.seen: list[RunSeen] = []
        self.predictions = Predictions()
        self._progress = Progress.read(path)
        self._finished: dict[Job, Run] = {}
        self._running: tuple[Job, WatchedRun] | None = None

    def look(self) -> None:
        """Read what is new."""
        held = is_held(self.path / LOCK)  # before the runs: the study may end just now
        self._progress = Progress.read(self.path)
        for job in self._progress.jobs:
            folder = self._folder(job)
            if job not in self._finished and mark_of(folder).exists():  # its records are read once
                self._finished[job] = read_run(*job, folder)
        self._follow(self._progress.running if held is not False else None)
        failures = dict(self._progress.failures)
        self.seen = [self._seen(job, failures.get(job)) for job in self._progress.jobs]
        ended = all(each.state in ("finished", "failed") for each in self.seen)
        if held or (held is None and not ended and not self._is_silent()):
            self.state = "running"
            return
        done: State = "failed" if failures.keys() - self._finished.keys() else "finished"
        self.state = done if ended else "silent"
        self.predictions = load_predictions(self.path)

    def _folder(self, job: Job) -> Path:
        point, repeat = job
        return self.path / "points" / point.name / f"run-{repeat}"

    def _follow(self, job: Job | None) -> None:
        """Look at the run under way."""
        if job is None or job in self._finished:
            self._running = None
            return
        if self._running is None or self._running[0] != job:
            self._running = job, WatchedRun(self._folder(job))
        self._running[1].look()

    def _is_silent(self) -> bool:
        """Whether the run under way was left, which tells where no lock does."""
        return self._running is not None and self._running[1].run.state in ("silent", "interrupted")

    def _seen(self, job: Job, why: str | None) -> RunSeen:
        if (done := self._finished.get(job)) is not None:
            rounds = [done.rounds[number] for number in later(len(done.rounds))]
            walls = [each.wall for each in rounds]
            rate = sum(each.updates for each in rounds) / sum(walls)
            return RunSeen(job, "finished", len(done.rounds), usual(walls, buffered=done.buffered), rate)
        if self._running is not None and self._running[0] == job:
            run = self._running[1].run
            return RunSeen(job, "running", run.last_round, run.seconds_per_round)
        return RunSeen(job, "waiting") if why is None else RunSeen(job, "failed", sentence=why)

    def _count(self, state: str) -> int:
        return sum(each.state == state for each in self.seen)

    def summary(self) -> None:
        """Return nothing: a study's results are the tables of ``fedsim scale``, or its report."""

    def record(self) -> dict[str, Any]:
        """Return what is known as names and values, for ``--json``."""
        return {
            "what": "scaling study",
            "place": str(self.path),
            "name": self.name,
            "state": self.state,
            "ended": None if self.state == "running" else self.words,
            "points": len({point for point, _ in self._progress.jobs}),
            "finished": self._count("finished"),
            "failed": self._count("failed"),
            "rounds_total": self._progress.rounds,
            "runs": [each.record() for each in self.seen],
            "predictions": [each.record() for each in self.predictions.asked],
        }

    @property
    def words(self) -> str:
        """How the study stands, in words."""
        counts = f"{self._count('finished')} of {len(self.seen)} runs finished"
        counts += f", {failed} failed" if (failed := self._count("failed")) else ""
        silent = "; no process works on it; the same command continues it"
        return f"{counts}{silent if self.state == 'silent' else ''}"

    def picture(self, width: int, ascii_only: bool = False) -> RenderableType:
        """Return the study as it stands, for a terminal of some width."""
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f" {self.name}  ", style="bold").append(self.state, style="cyan" if self.state == "running" else "")
        head.append(f"  {self.words}", style="dim")
        ended = self._count("finished") + self._count("failed")
        bar = ProgressBar(total=len(self.seen), completed=ended, width=max(10, min(80, width - 4)))
        shown, left_out = self._shown()
        parts: list[RenderableType] = [head, bar, self._table(shown)]
        parts += [Text(f" {left_out} more runs", style="dim")] if left_out else []
        for each in shown:
            if each.sentence is not None:
                parts.append(Text(f" failed: {self._named(each)}: {each.sentence}", style="red"))
        parts += [Text(f" {_predicted(each)}") for each in self.predictions.asked]
        return Group(*parts)

    def _shown(self) -> tuple[list[RunSeen], int]:
        """Return the runs that are shown, and the number of others: all are shown once the study has ended."""
        if self.state != "running":
            return self.seen, 0
        at = next((n for n, each in enumerate(self.seen) if each.state in ("running", "waiting")), len(self.seen))
        first = max(0, min(at - _BEFORE, len(self.seen) - _RUNS))
        shown = self.seen[first : first + _RUNS]
        return shown, len(self.seen) - len(shown)

    def _table(self, runs: list[RunSeen]) -> Table:
        several = any(repeat > 1 for _, repeat in self._progress.jobs)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        table.header_style = "dim"
        names = ("clients", "cohort", "actors", *(["repeat"] if several else []), "state")
        for name in (*names, "rounds", "a round", "updates/s"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        for each in runs:
            point, repeat = each.job
            cells = [f"{point.clients:,}", f"{point.cohort:,}", str(point.actors), *([str(repeat)] if several else [])]
            rounds = f"{each.rounds}/{self._progress.rounds}" if each.state in ("running", "finished") else MISSING
            rate = MISSING if each.updates_per_second is None else f"{each.updates_per_second:,.1f}"
            style = {"running": "cyan", "failed": "red", "waiting": "dim"}.get(each.state, "")
            table.add_row(*(Text(cell, style=style) for cell in (*cells, each.state, rounds, _seconds(each), rate)))
        return table

    def lines(self) -> Iterator[str]:
        """Yield how the study stands, as lines."""
        yield f"study  {self.name}  {self.state}  {self.words}"
        for each in self.seen:
            what = f"run    {self._named(each)}  {each.state}"
            if each.state == "failed":
                yield f"{what}  {each.sentence}"
            elif each.state != "waiting":
                pace = "" if each.seconds_round is None else f"  {_seconds(each)} a round"
                yield f"{what}  round {each.rounds}/{self._progress.rounds}{pace}"
        yield from map(_predicted, self.predictions.asked)

    def _named(self, each: RunSeen) -> str:
        return words(each.job, self._progress.jobs)


def _seconds(each: RunSeen) -> str:
    return MISSING if each.seconds_round is None else format_round(each.seconds_round)


def _predicted(each: Prediction) -> str:
    text = f"predicted: {each.point}: {format_round(each.seconds)} a round"
    if each.measured is None or each.error is None:
        return text
    return f"{text}, measured {format_round(each.measured)}, an error of {100 * each.error:+.0f} %"
