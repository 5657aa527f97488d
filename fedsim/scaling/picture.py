"""Plots of a scaling study: round times, time accounting, parallel efficiency."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.figure import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    attempt,
    drawn,
    dress,
    new_figures,
    save,
)
from fedsim.scaling.accounting import Efficiency
from fedsim.scaling.summary import PointSummary, StudySummary
from fedsim.scaling.table import format_round

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
_MARKERS = "osD^vP"
_PARTS = {
    "compute": (BLUE, "compute"),
    "evaluation": (SKY, "evaluation"),
    "reduce": (GREEN, "reduce"),
    "orchestration": (ORANGE, "orchestration"),
    "idle": (GREY, "idle"),
    "rest": (YELLOW, "rest of the driver"),
}
"""Colour and name of each part: blue for actors' work, green for the server, warm colours for overhead."""
_AXES: dict[str, tuple[str, Callable[[PointSummary], int]]] = {
    "clients": ("registered clients", lambda each: each.point.clients),
    "cohort": ("clients of a round", lambda each: each.point.cohort),
    "actors": ("actors", lambda each: each.workers),
}
_SPREAD = 0.06
"""Decades of the client axis over which series with the same number are spread."""
_LEAST_LABELLED = 0.045
"""Smallest share of the time whose label fits into its bar."""


def write_pictures(study: StudySummary, folder: Path, note: Callable[[str], None] = warnings.warn) -> list[Path]:
    """Draw all plots for which the study has points and return their paths; ``note`` is told of failures."""
    if not study.points:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Path], Path]] = {
        "round_time.png": lambda path: plot_time(study.points, path),
        "shares.png": lambda path: plot_shares(study.points, path),
    }
    if study.strong or study.weak:
        pictures["efficiency.png"] = lambda path: plot_efficiency(study.strong, study.weak, path)
    written = [attempt(draw, folder / name, note) for name, draw in pictures.items()]
    return [path for path in written if path is not None]


@drawn
def plot_time(points: Sequence[PointSummary], path: Path) -> Path:
    """Draw round time and client updates per second against what the study varies: clients, else cohort, else actors.

    Lines join points that differ in nothing else. Small dots are single rounds, hollow ones first rounds.
    """
    varied = [name for name, (_, value) in _AXES.items() if len({value(each) for each in points}) > 1] or ["clients"]
    label, x_of = _AXES[varied[0]]
    series: dict[tuple[int, ...], list[PointSummary]] = {}
    for each in points:
        series.setdefault(tuple(_AXES[name][1](each) for name in varied[1:]), []).append(each)
    figure, (above, below) = new_figures(2, height=7.2)
    dress(above, "Round time", label, "wall time of a round")
    dress(below, "Throughput", label, "client-updates per second")
    # Series are offset slightly, so that their single rounds can be told apart.
    beside_S = 10 ** (_SPREAD * (np.arange(len(series)) - (len(series) - 1) / 2) / max(len(series) - 1, 1))
    for number, (key, members) in enumerate(series.items()):
        members = sorted(members, key=x_of)
        x = beside_S[number] * np.array([x_of(each) for each in members])
        color, marker = _LINES[number % len(_LINES)], _MARKERS[number % len(_MARKERS)]
        style: dict[str, Any] = {"color": color, "marker": marker, "ms": 6, "lw": 1.8}
        name = ", ".join(_named(part, value) for part, value in zip(varied[1:], key, strict=True))
        above.plot(x, [each.seconds_round for each in members], label=name or "median of the rounds", zorder=3, **style)
        below.plot(x, [each.client_updates_per_second for each in members], label=name, zorder=3, **style)
        for at, each in zip(x, members, strict=True):
            dots = np.full(len(each.seconds_rounds), at)
            above.plot(dots, each.seconds_rounds, ".", color=color, ms=4, alpha=0.35, zorder=2)
        first = [each.seconds_first_round for each in members]
        above.plot(x, first, ls="", marker=marker, ms=6, mfc="white", mec=color, mew=1.2, zorder=2.5)
    above.plot([], [], ls="", marker="o", mfc="white", mec=FAINT, mew=1.2, label="first round, with its warm-up")
    for axes, form in ((above, _tick_seconds), (below, _tick_rate)):
        _log_axes(axes, sorted({x_of(each) for each in points}), form)
    above.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path)


@drawn
def plot_shares(points: Sequence[PointSummary], path: Path) -> Path:
    """Draw one bar per point: the parts of its actor-seconds, in rounds after the first."""
    figure, (axes,) = new_figures(1, height=1.9 + 0.42 * len(points))
    rounds = "the only round" if all(each.first_only for each in points) else "rounds after the first"
    dress(axes, "Where the time goes", f"share of actors x wall time, {rounds}", "")
    place = np.arange(len(points))
    left = np.zeros(len(points))
    for name, (color, label) in _PARTS.items():
        width = np.array([each.parts.shares()[name] for each in points])
        axes.barh(place, width, 0.72, left, color=color, label=label, linewidth=0, zorder=2)
        for row in map(int, np.flatnonzero(width >= _LEAST_LABELLED)):
            ink = INK if color in (GREY, SKY, YELLOW) else "white"
            middle = left[row] + width[row] / 2
            axes.text(middle, row, f"{100 * width[row]:.0f}%", ha="center", va="center", fontsize=8.5, color=ink)
        left += width
    for row, each in enumerate(points):
        axes.text(1.012, row, f"{format_round(each.seconds_round)} a round", va="center", fontsize=9, color=INK)
    axes.set_yticks(place, [_row_name(each) for each in points])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.0, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip
    return save(figure, path)


@drawn
def plot_efficiency(strong: Sequence[Efficiency], weak: Sequence[Efficiency], path: Path) -> Path:
    """Draw the efficiency of strong and of weak scaling against the number of actors, with the ideal line."""
    drawn = [("Strong scaling: the same work, more actors", strong, _strong_key)] if strong else []
    drawn += [("Weak scaling: work grows with the actors", weak, _weak_key)] if weak else []
    figure, all_axes = new_figures(len(drawn), height=0.6 + 3.4 * len(drawn))
    for axes, (title, entries, key) in zip(all_axes, drawn, strict=True):
        dress(axes, title, "actors", "efficiency")
        series: dict[str, list[Efficiency]] = {}
        for entry in entries:
            series.setdefault(key(entry), []).append(entry)
        actors = sorted({entry.actors for entry in entries})
        axes.plot([actors[0], actors[-1]], [1, 1], color=FAINT, lw=1.2, ls=(0, (5, 4)), label="ideal", zorder=2)
        for number, (name, members) in enumerate(series.items()):
            x, y = [entry.actors for entry in members], [entry.efficiency for entry in members]
            color, marker = _LINES[number % len(_LINES)], _MARKERS[number % len(_MARKERS)]
            axes.plot(x, y, color=color, marker=marker, ms=6, lw=1.8, label=name, zorder=3)
        axes.set_ylim(0, max(1.1, 1.05 * max(entry.efficiency for entry in entries)))
        _log_x(axes, actors)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path)


def _strong_key(entry: Efficiency) -> str:
    return f"{entry.clients:,} clients,\n{entry.cohort:,} a round"


def _weak_key(entry: Efficiency) -> str:
    return f"{entry.clients:,} clients,\n{entry.cohort / entry.actors:,.4g} a round per actor"


def _row_name(each: PointSummary) -> str:
    return f"{each.point.clients:,} clients, {each.point.cohort:,} a round, {_named('actors', each.workers)}"


def _named(part: str, value: int) -> str:
    if part == "actors":
        return f"{value} {'actor' if value == 1 else 'actors'}"
    return f"{value:,} clients" if part == "clients" else f"{value:,} a round"


def _log_axes(axes: Axes, x: Sequence[int], form: Callable[[float], str]) -> None:
    """Make both axes logarithmic, with readable tick labels."""
    from matplotlib.ticker import LogLocator, NullLocator

    _log_x(axes, x)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:  # less than a decade: leave a margin, so that noise does not look like a trend
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 10**0.5, middle * 10**0.5)
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: form(value))
    axes.yaxis.set_minor_locator(NullLocator())


def _log_x(axes: Axes, x: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xlim(x[0] / 1.25, x[-1] * 1.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(x, [f"{value:,}" for value in x])


def _tick_seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 0.0995 else f"{value:,.4g} s"


def _tick_rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.3g}"
