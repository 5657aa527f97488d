"""The report: rates, ratios, shares of the peak, and what was aimed at, from the figures on file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_report.figures import Figure
from benchmarks.gpu_report.peaks import peak_of
from benchmarks.measure import median_ratio

Cells = Mapping[tuple[str, str], Sequence[Figure]]

_AIMS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "ratio": ("at least", lambda got, aim: got >= aim),
    "share": ("at least", lambda got, aim: got >= aim),
    "value": ("at most", lambda got, aim: got <= aim),
}


@dataclass(frozen=True)
class Line:
    """A figure as it is shown."""

    part: str
    cell: str
    figure: Figure
    value: float | None
    """Median of its runs; tokens a second where there are tokens."""
    unit: str
    ratio: float | None
    """How many times as fast as its base: the median over pairs of runs."""
    share: float | None
    """Of the GPU's peak."""

    def reached(self, what: str) -> float | None:
        """Return what an aim is about: ``ratio``, ``share`` or ``value``."""
        found: float | None = getattr(self, what)
        return found


@dataclass(frozen=True)
class Aim:
    """What a figure should reach, and whether it does."""

    line: Line
    what: str
    aim: float

    @property
    def got(self) -> float | None:
        """What it reaches; None where it was not measured."""
        return self.line.reached(self.what)

    @property
    def met(self) -> bool:
        """Whether it is reached; what was not measured is not."""
        return self.got is not None and _AIMS[self.what][1](self.got, self.aim)

    @property
    def words(self) -> str:
        """The aim in words."""
        unit = {"ratio": " times as fast", "share": " of the peak", "value": f" {self.line.unit}"}[self.what]
        return f"{_AIMS[self.what][0]} {self.aim:g}{unit}"


def lines(cells: Cells) -> list[Line]:
    """Return all figures as they are shown."""
    peak = peak_of(tuple(figure for (part, _), figures in cells.items() if part == "peak" for figure in figures))
    shown: list[Line] = []
    for (part, cell), figures in cells.items():
        by_name = {figure.name: figure for figure in figures}
        for figure in figures:
            shown.append(_line(part, cell, figure, by_name.get(figure.base), peak))
    return shown


def aims(shown: Sequence[Line]) -> list[Aim]:
    """Return the aims of the figures that have one."""
    return [Aim(line, what, aim) for line in shown for what, aim in line.figure.aims.items()]


def _line(part: str, cell: str, figure: Figure, base: Figure | None, peak: float | None) -> Line:
    if not figure.values:
        return Line(part, cell, figure, None, figure.unit, None, None)
    value, unit = statistics.median(figure.values), figure.unit
    share = figure.flops / value / peak if figure.flops and peak else None
    ratio = median_ratio(_speeds(figure), _speeds(base)) if base is not None and base.values else None
    if figure.tokens:
        value, unit = figure.tokens / value, "tokens/s"
    return Line(part, cell, figure, value, unit, ratio, share)


def _speeds(figure: Figure) -> list[float]:
    """Return the work done in a second of each run; its amount counts where tokens were counted."""
    return [(figure.tokens or 1) / seconds for seconds in figure.values]


def show(console: Console, cells: Cells, title: str, left_out: Sequence[str], judged: bool) -> None:
    """Print the report.

    Parameters
    ----------
    left_out
        What did not fit into the time.
    judged
        Whether aims are compared with the figures: they are set for a GPU and models of full size.
    """
    shown = lines(cells)
    table = Table("part", "case", "figure", "value", "unit", "ratio", "to", "of peak", "GiB", "note", title=title)
    for line in shown:
        figure = line.figure
        memory = "" if figure.memory_bytes is None else f"{figure.memory_bytes / 2**30:.2f}"
        table.add_row(
            line.part, line.cell, figure.name, _number(line.value), line.unit, _number(line.ratio), figure.base,
            "" if line.share is None else f"{line.share:.1%}", memory, figure.note,
        )  # fmt: skip
    console.print(table)
    goals = Table("aim", "part", "case", "figure", "reached", "", title="What should be reached")
    for goal in aims(shown):
        verdict = ("yes" if goal.met else "NO") if judged else "not on this machine"
        line = goal.line
        goals.add_row(goal.words, line.part, line.cell, line.figure.name, _number(goal.got), verdict)
    console.print(goals)
    for name in left_out:
        console.print(f"did not fit into the time, and was not measured: {name}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
