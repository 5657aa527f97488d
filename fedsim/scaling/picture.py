"""Plots of a scaling study: round times, time accounting, parallel efficiency."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    Stamp,
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
PARTS = {
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


def write_pictures(
    study: StudySummary, folder: Path, note: Callable[[str], None] = warnings.warn, stamp: Stamp | None = None
) -> list[Path]:
    """Draw all plots for which the study has points and return their paths; ``note`` is told of failures."""
    if not study.points:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Path], Path]] = {
        "round_time.png": lambda path: plot_time(study.points, path, stamp),
        "shares.png": lambda path: plot_shares(study.points, path, stamp),
    }
    if study.strong or study.weak:
        pictures["efficiency.png"] = lambda path: plot_efficiency(study.strong, study.weak, path, stamp)
    written = [attempt(draw, folder / name, note) for name, draw in pictures.items()]
    return [path for path in written if path is not None]


@drawn
def plot_time(points: Sequence[PointSummary], path: Path, stamp: Stamp | None = None) -> Path:
    """Draw round time and client updates per second against what the study varies: clients, else cohort, else actors.

    Lines join points that differ in nothing else. Small dots are single rounds, hollow ones first rounds. With a virtual clock
    the simulated time of a round stands below.
    """
    label, series = time_series(points)
    has_clock = any(each.seconds_simulated is not None for each in points)
    figure, (above, below, *last) = new_figures(2 + has_clock, height=7.2 + 3.6 * has_clock)
    dress(above, "Round time", label, "wall time of a round")
    dress(below, "Throughput", label, "client-updates per second")
    draw_time(above, series)
    draw_rate(below, series)
    for axes in last:
        dress(axes, "Simulated time", label, "simulated time of a round")
        draw_simulated(axes, series)
    above.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path, stamp)


@dataclass(frozen=True)
class Series:
    """Points that differ in one thing alone."""

    name: str
    """Empty if there is no other series."""
    x: np.ndarray
    """Where they are drawn: series are offset slightly, so that their single rounds can be told apart."""
    at: tuple[int, ...]
    """What varies."""
    points: tuple[PointSummary, ...]
    style: dict[str, Any]


def time_series(points: Sequence[PointSummary]) -> tuple[str, list[Series]]:
    """Return the label of what is varied, and the points as series along it."""
    varied = [name for name, (_, value) in _AXES.items() if len({value(each) for each in points}) > 1] or ["clients"]
    label, x_of = _AXES[varied[0]]
    groups: dict[tuple[int, ...], list[PointSummary]] = {}
    for each in points:
        groups.setdefault(tuple(_AXES[name][1](each) for name in varied[1:]), []).append(each)
    beside_S = 10 ** (_SPREAD * (np.arange(len(groups)) - (len(groups) - 1) / 2) / max(len(groups) - 1, 1))
    series = []
    for number, (key, members) in enumerate(groups.items()):
        members = sorted(members, key=x_of)
        at = tuple(x_of(each) for each in members)
        name = ", ".join(_named(part, value) for part, value in zip(varied[1:], key, strict=True))
        series.append(Series(name, beside_S[number] * np.array(at), at, tuple(members), _style(number)))
    return label, series


def _style(number: int) -> dict[str, Any]:
    return {"color": _LINES[number % len(_LINES)], "marker": _MARKERS[number % len(_MARKERS)], "ms": 6, "lw": 1.8}


def draw_time(axes: Axes, series: Sequence[Series]) -> None:
    """Draw the wall time of a round on logarithmic axes."""
    for each in series:
        seconds = [point.seconds_round for point in each.points]
        usual = "mean of the server steps" if each.points[0].buffered else "median of the rounds"
        axes.plot(each.x, seconds, label=each.name or usual, zorder=3, **each.style)
        for at, point in zip(each.x, each.points, strict=True):
            dots = np.full(len(point.seconds_rounds), at)
            axes.plot(dots, point.seconds_rounds, ".", color=each.style["color"], ms=4, alpha=0.35, zorder=2)
        hollow = {"marker": each.style["marker"], "ms": 6, "mfc": "white", "mec": each.style["color"], "mew": 1.2}
        axes.plot(each.x, [point.seconds_first_round for point in each.points], ls="", zorder=2.5, **hollow)
    axes.plot([], [], ls="", marker="o", mfc="white", mec=FAINT, mew=1.2, label="first round, with its warm-up")
    _log_axes(axes, sorted({at for each in series for at in each.at}), _tick_seconds)


def draw_rate(axes: Axes, series: Sequence[Series]) -> None:
    """Draw client updates per second on logarithmic axes."""
    for each in series:
        rates = [point.client_updates_per_second for point in each.points]
        axes.plot(each.x, rates, label=each.name or "all rounds", zorder=3, **each.style)
    _log_axes(axes, sorted({at for each in series for at in each.at}), _tick_rate)


def draw_simulated(axes: Axes, series: Sequence[Series]) -> None:
    """Draw the simulated time of a round on logarithmic axes."""
    for each in series:
        seconds = [np.nan if point.seconds_simulated is None else point.seconds_simulated for point in each.points]
        axes.plot(each.x, seconds, label=each.name or "mean of the rounds", zorder=3, **each.style)
    _log_axes(axes, sorted({at for each in series for at in each.at}), _tick_seconds)


@drawn
def plot_shares(points: Sequence[PointSummary], path: Path, stamp: Stamp | None = None) -> Path:
    """Draw one bar per point: the parts of its actor-seconds, in rounds after the first."""
    figure, (axes,) = new_figures(1, height=1.9 + 0.42 * len(points))
    rounds = "the only round" if all(each.first_only for each in points) else "rounds after the first"
    dress(axes, "Where the time goes", f"share of actors x wall time, {rounds}", "")
    draw_shares(axes, points)
    for row, each in enumerate(points):
        axes.text(1.012, row, f"{format_round(each.seconds_round)} a round", va="center", fontsize=9, color=INK)
    axes.set_yticks(np.arange(len(points)), [_row_name(each) for each in points])
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.0, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip
    return save(figure, path, stamp)


def draw_shares(axes: Axes, points: Sequence[PointSummary], least_labelled: float = _LEAST_LABELLED) -> None:
    """Draw one stacked bar per point, the first on top; parts of at least ``least_labelled`` are labelled."""
    place = np.arange(len(points))
    left = np.zeros(len(points))
    for name, (color, label) in PARTS.items():
        width = np.array([each.parts.shares()[name] for each in points])
        axes.barh(place, width, 0.72, left, color=color, label=label, linewidth=0, zorder=2)
        for row in map(int, np.flatnonzero(width >= least_labelled)):
            ink = INK if color in (GREY, SKY, YELLOW) else "white"
            middle = left[row] + width[row] / 2
            axes.text(middle, row, f"{100 * width[row]:.0f}%", ha="center", va="center", fontsize=8.5, color=ink)
        left += width
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left"]].set_visible(False)


@drawn
def plot_efficiency(
    strong: Sequence[Efficiency], weak: Sequence[Efficiency], path: Path, stamp: Stamp | None = None
) -> Path:
    """Draw the efficiency of strong and of weak scaling against the number of actors, with the ideal line."""
    drawn = [("Strong scaling: the same work, more actors", strong, strong_key)] if strong else []
    drawn += [("Weak scaling: work grows with the actors", weak, weak_key)] if weak else []
    figure, all_axes = new_figures(len(drawn), height=0.6 + 3.4 * len(drawn))
    for axes, (title, entries, key) in zip(all_axes, drawn, strict=True):
        dress(axes, title, "actors", "efficiency")
        draw_efficiency(axes, entries, key)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path, stamp)


def draw_efficiency(axes: Axes, entries: Sequence[Efficiency], key: Callable[[Efficiency], str]) -> None:
    """Draw efficiencies against actors, with a line for each key."""
    series: dict[str, list[Efficiency]] = {}
    for entry in entries:
        series.setdefault(key(entry), []).append(entry)
    actors = sorted({entry.actors for entry in entries})
    axes.plot([actors[0], actors[-1]], [1, 1], color=FAINT, lw=1.2, ls=(0, (5, 4)), label="ideal", zorder=2)
    for number, (name, members) in enumerate(series.items()):
        x, y = [entry.actors for entry in members], [entry.efficiency for entry in members]
        axes.plot(x, y, label=name, zorder=3, **_style(number))
    axes.set_ylim(0, max(1.1, 1.05 * max(entry.efficiency for entry in entries)))
    _log_x(axes, actors)


def strong_key(entry: Efficiency) -> str:
    """Name what points of strong scaling have in common."""
    return f"{entry.clients:,} clients,\n{entry.cohort:,} a round"


def weak_key(entry: Efficiency) -> str:
    """Name what points of weak scaling have in common."""
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
