"""A watched run on a terminal, in a pipe, in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.display.progress import sparkline
from fedsim.display.report import MISSING, format_bytes, format_clock, format_metric, format_seconds
from fedsim.display.round_line import plain_line, recent_table
from fedsim.display.watch.run_state import RunState
from fedsim.display.watch.watched_run import WatchedRun

_ROUNDS = 8
_EVENTS = 5
_STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow", "failed": "red", "silent": "red"}


def picture(watched: WatchedRun, width: int, ascii_only: bool = False) -> RenderableType:
    """Return a run as it stands, for a terminal of some width."""
    run = watched.run
    parts: list[RenderableType] = [_head(watched)]
    if run.rounds:
        parts.append(recent_table(run.lines(_ROUNDS), run.metric_name, width))
    if run.metrics:
        parts.append(_course(run, width, ascii_only))
    parts += [_bar(run, watched.age_seconds, width), _sums(run)]
    for time, kind, words in run.told[-_EVENTS:]:
        style = "red" if kind in ("client_failure", "stopped") else "yellow" if kind == "recovered" else "dim"
        parts.append(Text(f" {_local(time)}  {words}", style=style, no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _head(watched: WatchedRun) -> Text:
    run = watched.run
    ended = run.state != "running"
    text = Text(no_wrap=not ended, overflow="fold" if ended else "ellipsis")
    text.append(f" {run.name}  ", style="bold").append(run.state, style=_STYLES[run.state])
    return text.append(f"  {state_words(watched)}", style="dim")


def state_words(watched: WatchedRun) -> str:
    """Return how a run stands, or how it ended."""
    run, age = watched.run, watched.age_seconds
    since = "" if run.written is None else f"{run.written.astimezone():%Y-%m-%d %H:%M:%S}, {format_seconds(age)} ago"
    if run.state == "silent":
        return f"it has not ended, but nothing has been written since {since}; fedsim run --resume continues it"
    if run.ended is not None:
        return f"{run.ended.removeprefix(run.state).lstrip(': ')}, {since}"
    if run.written is None:
        return "nothing is on record yet"
    return f"last written {format_seconds(age)} ago"


def _course(run: RunState, width: int, ascii_only: bool) -> Text:
    metrics = run.metrics
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" {run.metric_name} ", style="dim").append(format_metric(metrics[-1]), style="bold")
    text.append("  first ", style="dim").append(format_metric(metrics[0]))
    text.append("  best ", style="dim").append(format_metric(max(metrics)))
    if width >= 80 and not ascii_only:
        text.append("  ").append(sparkline(metrics, min(100, width - 60)), style="cyan")
    return text


def _bar(run: RunState, age_seconds: float, width: int) -> Table:
    done, total = run.last_round, run.total_rounds
    grid = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [Text("")]
    if total:
        cells.append(ProgressBar(total=total, completed=done, width=max(10, min(60, width - 60))))
    cells.append(Text(f"round {done}/{total or MISSING}", no_wrap=True))
    if (pace := run.seconds_per_round) is not None:
        cells.append(Text(f"{format_seconds(pace)} per round", style="dim", no_wrap=True))
    if (left := run.seconds_left) is not None:
        cells.append(Text(f"{format_clock(left - age_seconds)} left", style="dim", no_wrap=True))
    grid.add_row(*cells)
    return grid


def _sums(run: RunState) -> Text:
    words = [
        f"{format_bytes(run.total('bytes_down'))} down, {format_bytes(run.total('bytes_up'))} up",
        f"{run.total('clients_ok'):,} client updates, {run.total('clients_failed'):,} failed",
        f"{format_clock(run.clock_seconds)} of running",
    ]
    return Text(f" {'; '.join(words)}", style="dim", no_wrap=True, overflow="ellipsis")


def _local(time: str) -> str:
    try:
        return f"{datetime.fromisoformat(time.replace('Z', '+00:00')).astimezone():%H:%M:%S}"
    except ValueError:
        return MISSING


class PlainLines:
    """The lines of a watched run where nothing can be redrawn: what is new since the last look."""

    def __init__(self, watched: WatchedRun) -> None:
        self._watched = watched
        self._round = 0
        self._told = 0
        self._begun = False

    def new(self) -> Iterator[str]:
        """Yield a line for each round and event that is new; of what was there at first, the last ones."""
        run = self._watched.run
        if self._watched.went_back or self._told > len(run.told):
            yield f"back   to round {run.last_round}"
            self._round, self._told = min(self._round, run.last_round), min(self._told, len(run.told))
        told = run.told[self._told :] if self._begun else run.told[-_EVENTS:]
        yield from (f"event  {time}  {words}" for time, _, words in told)
        lines = [line for line in run.lines() if line.round > self._round]
        total = run.total_rounds or run.last_round
        for line in lines if self._begun else lines[-_ROUNDS:]:
            left = run.seconds_left if line is lines[-1] else None
            yield plain_line(replace(line, eta_seconds=left), total, run.metric_name)
        self._round, self._told, self._begun = run.last_round, len(run.told), True

    def last(self) -> str:
        """Return the line that says how the run stands."""
        run = self._watched.run
        return f"state  {run.state}  round {run.last_round}/{run.total_rounds or MISSING}  {state_words(self._watched)}"
