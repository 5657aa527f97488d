"""Curves of a study's arms, with bands over seeds.

Shape suffixes: S seeds, R evaluated rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim.display.course import byte_unit, chance, draw_chance, metric_words, whole_numbers
from fedsim.display.figure import FAINT, drawn
from fedsim.display.page.arms import ArmStyle, arm_legend
from fedsim.display.page.parts import Cell, Figure, Figures, Table, number_cell, thinned
from fedsim.display.page.small import as_figure, small
from fedsim.records.columns import TEXT_METRIC_WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedsim.study.figures import CellFigures
    from fedsim.study.outcome import StudySummary

    ByArm = Mapping[str, Sequence[CellFigures]]

_MOST_POINTS = 80
"""Of a line."""
AXES = {
    "round": "by round",
    "bytes": "by traffic",
    "seconds_published": "by time, published definition",
    "seconds_modelled": "by time, our model of devices",
}
"""What curves are drawn against: fields of :class:`fedsim.study.figures.CurvePoint`, and their titles."""
_MEANINGS = {
    "round": "",
    "bytes": " All devices together, down and up.",
    "seconds_published": " The longest local training of each round, summed over rounds.",
    "seconds_modelled": " Computing and sending on the devices and the network that the study models.",
}
_SHORT = {"exact_match": "exact match", "f1": "F1"}
"""Names of text metrics whose words are a whole sentence."""
_OF_CLOCK = "by simulated time", " On the virtual clock of the simulated devices."
"""The same of modelled time where runs have a clock of their own."""


@dataclass(frozen=True)
class Curve:
    """An arm's curve over its seeds."""

    x_R: np.ndarray
    mean_R: np.ndarray
    least_R: np.ndarray
    most_R: np.ndarray


def curve(cells: Sequence[CellFigures], axis: str, figure: str = "metric") -> Curve | None:
    """Return the mean over seeds by evaluated round, with the least and the most; None if there is nothing to draw.

    Rounds count that all seeds evaluate. Where x differs between seeds, it is their mean.

    Parameters
    ----------
    axis, figure
        Fields of :class:`fedsim.study.figures.CurvePoint`.
    """
    by_round = [{point.round: point for point in cell.curve} for cell in cells if cell.curve]
    if not by_round:
        return None
    rounds = sorted(set.intersection(*(set(each) for each in by_round)))
    y_SR, x_SR = (
        np.array([[getattr(each[round], name) for round in rounds] for each in by_round], dtype=float)
        for name in (figure, axis)
    )
    known = np.isfinite(y_SR).all(axis=0) & np.isfinite(x_SR).all(axis=0)
    if not known.any():
        return None
    y_SR, x_SR = y_SR[:, known], x_SR[:, known]
    kept = np.unique(np.linspace(0, y_SR.shape[1] - 1, _MOST_POINTS).round().astype(int))
    y_SR, x_SR = y_SR[:, kept], x_SR[:, kept]
    return Curve(x_SR.mean(axis=0), y_SR.mean(axis=0), y_SR.min(axis=0), y_SR.max(axis=0))


def curve_rows(summary: StudySummary, of_dataset: Mapping[str, ByArm], styles: dict[str, ArmStyle]) -> list[Figures]:
    """Return a row of figures for each axis, the legend above the first."""
    rows: list[Figures] = []
    for axis in AXES:
        drawn = [
            curve_figure(
                f"curve-{axis}-{at}", _named(summary, dataset), axis, arms, styles, _target(summary, dataset, "")
            )
            for at, (dataset, arms) in enumerate(of_dataset.items())
        ]
        if figures := tuple(each for each in drawn if each is not None):
            rows.append(Figures(figures, () if rows else arm_legend(styles, summary.reference)))
    rows += _written_curves(summary, of_dataset, styles)
    if all(len(row.figures) == 1 for row in rows):  # one data set: all in one row
        return [Figures(tuple(row.figures[0] for row in rows), rows[0].legend)] if rows else []
    return rows


def _written_curves(
    summary: StudySummary, of_dataset: Mapping[str, ByArm], styles: dict[str, ArmStyle]
) -> list[Figures]:
    """Return a row of figures for each text metric by round, and for one with a target against all else."""
    rows = []
    for name in TEXT_METRIC_WORDS:
        targets = {dataset: _target(summary, dataset, name) for dataset in of_dataset}
        for axis in AXES if any(map(math.isfinite, targets.values())) else ("round",):
            drawn = [
                curve_figure(
                    f"curve-{name}-{axis}-{at}", _named(summary, dataset), axis, arms, styles, targets[dataset], name
                )
                for at, (dataset, arms) in enumerate(of_dataset.items())
            ]
            if figures := tuple(each for each in drawn if each is not None):
                rows.append(Figures(figures, ()))
    return rows


def _target(summary: StudySummary, dataset: str, metric: str) -> float:
    """Return the target on a data set if it is one of a text metric, empty for the task's; NaN without."""
    rows = (row for row in summary.rows if row.dataset == dataset and row.target_metric == metric)
    return next((row.target for row in rows if math.isfinite(row.target)), math.nan)


def _named(summary: StudySummary, dataset: str) -> str:
    return dataset if len(summary.datasets) > 1 else ""


def text_metric(name: str) -> str:
    """Return the name of a text metric in words."""
    return _SHORT.get(name, TEXT_METRIC_WORDS[name])


def titled(name: str) -> str:
    """Return a title's first words with a capital, unless they begin with a name such as chrF."""
    return name if name.startswith("chrF") else f"{name[:1].upper()}{name[1:]}"


@drawn
def curve_figure(
    key: str,
    dataset: str,
    axis: str,
    cells: Mapping[str, Sequence[CellFigures]],
    styles: Mapping[str, ArmStyle],
    target: float,
    written: str | None = None,
) -> Figure | None:
    """Return the curves of all arms on a data set against one axis; None if there is nothing to draw.

    Parameters
    ----------
    dataset
        Its name in the title; empty if there is no other.
    cells
        By arm.
    target
        Metric to reach; NaN without.
    written
        Text metric of what the global model writes; None for the task's metric.
    """
    field = "metric" if written is None else f"generated_{written}"
    found = {arm: got for arm, each in cells.items() if (got := curve(each, axis, field)) is not None}
    if not found:
        return None
    one = next(cell for each in cells.values() for cell in each)
    name = metric_words(one.metric_name) if written is None else text_metric(written)
    label, factor = _unit(axis, max(float(each.x_R[-1]) for each in found.values()))
    figure, axes = small(label, name)
    for arm, each in found.items():
        _draw(axes, each, factor, styles[arm], 0.16 if len(found) < 5 else 0.1)
    guess = chance(one.metric_name, one.num_classes) if written is None else None
    draw_chance(axes, guess)
    if math.isfinite(target):
        axes.axhline(target, color=FAINT, lw=1.0, ls=(0, (6, 3)), zorder=1.5)
        place = ("axes fraction", "data")
        axes.annotate("target", (0.01, target), xycoords=place, va="bottom", fontsize=8.5, color=FAINT)
    if axis == "round":
        whole_numbers(axes, 8)
    else:
        axes.set_xlim(left=0)
    seeds = max(len(each) for each in cells.values())
    band = f"Mean over {seeds} seeds; band: the least and the most." if seeds > 1 else "One seed."
    clocks = axis == "seconds_modelled" and one.about.get("seconds_simulated") is not None
    by, meaning = _OF_CLOCK if clocks else (AXES[axis], _MEANINGS[axis])
    title = f"{name.capitalize() if name.islower() else name}{'' if written is None else ' of written responses'} {by}"
    title += f", {dataset}" if dataset else ""
    data = _by_round(title, found) if axis == "round" else _in_turn(title, label, found, factor)
    text = f"{band}{meaning}{'' if guess is None else ' Dotted: chance.'}"
    return as_figure(figure, key, title, text, data, axes if axis == "round" else None)


def _draw(axes: Axes, each: Curve, factor: float, style: ArmStyle, shade: float) -> None:
    x = each.x_R / factor
    if (each.most_R > each.least_R).any():
        axes.fill_between(x, each.least_R, each.most_R, color=style.color, alpha=shade, lw=0, zorder=2, gid=style.gid)
    axes.plot(x, each.mean_R, zorder=3, **style.line())
    # A few markers tell lines apart without their colour.
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), 6)).round().astype(int))
    axes.plot(
        x[some], each.mean_R[some], ls="", marker=style.marker, ms=4.5, color=style.color, zorder=3, gid=style.gid
    )


def _unit(axis: str, most: float) -> tuple[str, float]:
    if axis == "bytes":
        factor, unit = byte_unit(most)
        return f"traffic of all clients ({unit})", factor
    if axis == "round":
        return "round", 1.0
    factor, unit = (3600.0, "h") if most >= 7200 else (60.0, "min") if most >= 180 else (1.0, "s")
    return f"time ({unit})", factor


def _by_round(title: str, found: Mapping[str, Curve]) -> Table:
    rounds = sorted({round for each in found.values() for round in each.x_R.tolist()})
    at = {arm: dict(zip(each.x_R.tolist(), each.mean_R.tolist(), strict=True)) for arm, each in found.items()}
    rows = [
        (number_cell(round, "{:.0f}"), *(number_cell(values.get(round)) for values in at.values())) for round in rounds
    ]
    return Table(f"{title}, means", ("round", *found), thinned(rows), sortable=False)


def _in_turn(title: str, label: str, found: Mapping[str, Curve], factor: float) -> Table:
    rows = [
        (Cell(arm), number_cell(x / factor, "{:.4g}"), number_cell(mean), number_cell(least), number_cell(most))
        for arm, each in found.items()
        for x, mean, least, most in zip(each.x_R, each.mean_R, each.least_R, each.most_R, strict=True)
    ]
    return Table(title, ("arm", label, "mean", "least", "most"), thinned(rows), sortable=False)
