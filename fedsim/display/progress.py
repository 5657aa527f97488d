"""Progress display of a run: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fedsim.display.notebook import NotebookLive, notebook_display
from fedsim.display.report import format_clock, format_metric, format_seconds
from fedsim.display.round_line import START_LOSS, RoundLine, plain_line, recent_table
from fedsim.display.screen import Screen

_RECENT_ROUNDS = 5
_ETA_ROUNDS = 10
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class _Underway:
    """Clients of the current round."""

    round: int = 0
    done: int = 0
    total: int = 0


class Progress:
    """Shows phases, rounds and notes; use it as a context manager.

    On a terminal the last lines are redrawn in place; in a notebook there is one block, redrawn as a whole; otherwise each
    phase, round and note is one line. A round's line consists of name-value pairs, separated by spaces, always in the same
    order.

    Parameters
    ----------
    total_rounds
        Rounds of the whole run, including those before a resume.
    metric_name
        Name of the global metric.
    console
        Console to print to; if not given, the notebook that this process serves, else standard output.
    quiet
        Whether to show notes only.
    """

    def __init__(
        self, total_rounds: int, metric_name: str, console: Console | None = None, quiet: bool = False
    ) -> None:
        self._total = total_rounds
        self._metric_name = metric_name
        self._console = console or Screen()
        self._quiet = quiet
        self._recent: deque[RoundLine] = deque(maxlen=max(_RECENT_ROUNDS, _ETA_ROUNDS))
        self._metrics: list[float] = []
        self._phase: str | None = None
        self._phase_start = 0.0
        self._last_round_at = 0.0
        self._underway = _Underway()
        dots = "line" if self._console.options.ascii_only else "dots"
        self._phase_spinner, self._round_spinner = Spinner(dots, style="cyan"), Spinner(dots, style="cyan")
        self._live: Live | NotebookLive | None = None
        display = notebook_display() if console is None else None
        if display is not None and not quiet:
            self._live = NotebookLive(self._render, display)
            self._console = self._live.console
        elif self._console.is_interactive and not quiet:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_phase(done=kind is None)
        if self._live:
            self._live.stop()

    def start_phase(self, text: str) -> None:
        """Show the current phase until the next phase, the first round or the end."""
        self._end_phase()
        self._phase, self._phase_start = text, time.monotonic()
        self._refresh()
        if not self._live:
            self._print(f"phase  {text}")

    def start(self, metric: float, loss: float, generated: tuple[str, float] | None = None) -> None:
        """Show the evaluation before any training: metric and loss on the validation examples, and the main text metric of what
        the model wrote, if it did.
        """
        self._end_phase()
        self._add_metric(metric)
        self._refresh()
        if not self._live:
            written = [] if generated is None else [generated]
            pairs = [(self._metric_name, metric), *written, (START_LOSS, loss)]
            self._print("start  " + "  ".join(f"{name} {format_metric(value)}" for name, value in pairs))

    def clients_done(self, round: int, done: int, total: int) -> None:
        """Show how many clients of the current round are done; on a terminal only."""
        self._end_phase()
        self._underway = _Underway(round, done, total)
        if isinstance(self._live, NotebookLive):
            self._live.refresh_if_old()

    def round(self, line: RoundLine) -> None:
        """Show a finished round."""
        self._end_phase()
        self._recent.append(line)
        self._recent[-1] = line = replace(line, eta_seconds=self._eta(line))
        self._last_round_at = time.monotonic()
        self._add_metric(line.metric)
        self._refresh()
        if not self._live:
            self._print(plain_line(line, self._total, self._metric_name))

    def note(self, text: str) -> None:
        """Show a message that stays, above the live display."""
        self._console.print(Text(text, style="yellow"), soft_wrap=not self._live)
        if isinstance(self._live, NotebookLive):
            self._live.refresh()
        self._flush()

    def _add_metric(self, metric: float | None) -> None:
        if metric is not None and math.isfinite(metric):
            self._metrics.append(metric)

    def _eta(self, line: RoundLine) -> float:
        if line.eta_seconds is not None:
            return line.eta_seconds
        recent = [item.seconds for item in list(self._recent)[-_ETA_ROUNDS:]]
        return sum(recent) / len(recent) * (self._total - line.round)

    def _end_phase(self, done: bool = True) -> None:
        if self._phase is not None and self._live and done:
            took = format_seconds(time.monotonic() - self._phase_start)
            self._console.print(Text(f"{self._phase}, {took}", style="dim"))
        self._phase = None

    def _print(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)
            self._flush()

    def _flush(self) -> None:
        if not self._live:
            self._console.file.flush()  # a log file or pipe shows each line at once

    def _refresh(self) -> None:
        if self._live:
            self._live.refresh()

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._phase is not None:
            passed = format_clock(time.monotonic() - self._phase_start)
            self._phase_spinner.update(text=Text(f"{self._phase}  {passed}", no_wrap=True, overflow="ellipsis"))
            parts.append(self._phase_spinner)
        width = self._console.width
        if self._recent:
            parts.append(recent_table(list(self._recent)[-_RECENT_ROUNDS:], self._metric_name, width))
        if self._metrics:
            parts.append(self._status(width))
        if self._recent or self._underway.total:
            parts.append(self._bar(width))
        return Group(*parts)

    def _status(self, width: int) -> Text:
        """Return the metric's history: latest, first, best, sparkline."""
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f" {self._metric_name} ", style="dim")
        text.append(format_metric(self._metrics[-1]), style="bold")
        if width >= 60:
            text.append("  first ", style="dim").append(format_metric(self._metrics[0]))
            text.append("  best ", style="dim").append(format_metric(max(self._metrics)))
        if width >= 80 and not self._console.options.ascii_only:
            text.append("  ").append(sparkline(self._metrics, min(40, width - 60)), style="cyan")
        return text

    def _bar(self, width: int) -> Table:
        """Return the rounds done, the clients of the current round, and the time left."""
        finished = self._recent[-1].round if self._recent else self._underway.round - 1
        over = finished >= self._total
        share = 0.0 if over or self._underway.round <= finished else self._underway.done / self._underway.total
        shown = finished if over else finished + 1
        cells: list[RenderableType] = [Text("") if over else self._round_spinner]
        if width >= 60:
            cells.append(ProgressBar(total=self._total, completed=finished + share, width=min(40, width - 48)))
        cells.append(Text(f"round {shown}/{self._total}", no_wrap=True))
        if width >= 40 and share:
            cells.append(Text(f"{self._underway.done}/{self._underway.total} clients", style="dim", no_wrap=True))
        if width >= 60 and self._recent and not over:
            left = (self._recent[-1].eta_seconds or 0.0) - (time.monotonic() - self._last_round_at)
            cells.append(Text(f"{format_clock(left)} left", style="dim", no_wrap=True))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*cells)
        return grid


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a line of block characters, one per value, or per mean of neighbours if ``width`` is too small."""
    width = max(1, min(width, len(values)))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)
