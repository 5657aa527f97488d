"""Curves of a run by round and by traffic, drawn on given axes; plots and pages put them in figures of their own size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.display.figure import BLUE, FAINT, GREEN, GREY, INK, ORANGE
from fedsim.display.timeline import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Columns = Mapping[str, np.ndarray]
"""Columns of ``rounds.parquet`` by name; NaN where not measured."""

METRIC_LINES = (
    ("global_metric", "global model", {"color": BLUE, "marker": "o", "ls": "-"}),
    ("personalised_metric", "personalised", {"color": ORANGE, "marker": "D", "ls": (0, (5, 2))}),
)
LOSS_LINES = (
    ("train_loss_first", "training, first local epoch", {"color": GREY, "marker": "s", "ls": (0, (1, 1))}),
    ("train_loss_last", "training, last local epoch", {"color": BLUE, "marker": "o", "ls": "-"}),
    ("global_loss", "validation, global model", {"color": ORANGE, "marker": "D", "ls": (0, (5, 2))}),
    ("personalised_loss", "held-out, personalised", {"color": GREEN, "marker": "^", "ls": (0, (3, 1, 1, 1))}),
)
GENERATED_LINES = (
    ("generated_exact_match", "exact match", {"color": BLUE, "marker": "o", "ls": "-"}),
    ("generated_f1", "F1 of words", {"color": ORANGE, "marker": "D", "ls": (0, (5, 2))}),
    ("generated_rouge1", "ROUGE-1", {"color": GREEN, "marker": "^", "ls": (0, (3, 1, 1, 1))}),
    ("generated_rouge2", "ROUGE-2", {"color": GREY, "marker": "s", "ls": (0, (1, 1))}),
    ("generated_rougeL", "ROUGE-L", {"color": INK, "marker": "v", "ls": (0, (8, 2))}),
    ("generated_chrf", "chrF", {"color": FAINT, "marker": "P", "ls": (0, (2, 2))}),
)
"""Column, name and style of each line; lines differ in colour, dash and marker."""
_MARKED_POINTS = 40
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def chance(metric_name: str, num_classes: int | None) -> float | None:
    """Return what guessing scores, with all classes equally likely; None where that is not known."""
    if metric_name == "matthews":
        return 0.0
    return 1.0 / num_classes if metric_name == "accuracy" and num_classes else None


def with_final(rounds: Columns, personalised: float | None) -> Columns:
    """Return the rounds with the personalised metric of the end of the run, which is evaluated after the last round."""
    if personalised is None or not math.isfinite(personalised) or not len(rounds["round"]):
        return rounds
    held = rounds.get("personalised_metric")
    column = np.full(len(rounds["round"]), math.nan) if held is None else held.astype(float)
    last = int(np.argmax(rounds["round"]))
    column[last] = column[last] if math.isfinite(column[last]) else personalised
    return {**rounds, "personalised_metric": column}


def with_generated(rounds: Columns, generated: Mapping[str, Any] | None) -> Columns:
    """Return the rounds with the text metrics of the start and of the end of the run, where these are not of a round's record.

    Parameters
    ----------
    generated
        Field ``generated`` of the summary.
    """
    if not generated or not len(rounds["round"]):
        return rounds
    order = np.argsort(rounds["round"], kind="stable")
    found = dict(rounds)
    for column, _, _ in GENERATED_LINES:
        name = column.removeprefix("generated_")
        values = np.array(rounds.get(column, np.full(len(order), math.nan)), dtype=float)
        start = generated.get("start", {}) if rounds["round"][order[0]] == 0 else {}
        for at, part in ((order[-1], generated), (order[0], start)):
            if not math.isfinite(values[at]) and isinstance(part.get(name), float):
                values[at] = part[name]
        found[column] = values
    return found


def draw_metric(axes: Axes, rounds: Columns, guessing: float | None = None) -> bool:
    """Draw the global and the personalised metric by round, and chance; return whether there was any."""
    x = _sorted(rounds, "round")
    drawn = [_line(axes, x, _sorted(rounds, column), name, style) for column, name, style in METRIC_LINES]
    if any(drawn):
        draw_chance(axes, guessing)
        _round_axis(axes, x)
    return any(drawn)


def draw_loss(axes: Axes, rounds: Columns) -> bool:
    """Draw training and evaluation losses by round; return whether there was any."""
    x = _sorted(rounds, "round")
    drawn = [_line(axes, x, _sorted(rounds, column), name, style) for column, name, style in LOSS_LINES]
    if any(drawn):
        _round_axis(axes, x)
    return any(drawn)


def draw_generated(axes: Axes, rounds: Columns) -> bool:
    """Draw the metrics of written responses by round; return whether there was any."""
    x = _sorted(rounds, "round")
    drawn = [_line(axes, x, _sorted(rounds, column), name, style) for column, name, style in GENERATED_LINES]
    if any(drawn):
        axes.set_ylim(-0.02, 1.02)
        _round_axis(axes, x)
    return any(drawn)


def draw_metric_by_bytes(axes: Axes, rounds: Columns, guessing: float | None = None) -> str | None:
    """Draw the metrics against the traffic of all clients so far; return the unit, or None if there is nothing to draw."""
    total = traffic(rounds)
    if not len(total) or total[-1] <= 0:
        return None
    factor, unit = byte_unit(total[-1])
    drawn = [_line(axes, total / factor, _sorted(rounds, column), name, style) for column, name, style in METRIC_LINES]
    if not any(drawn):
        return None
    draw_chance(axes, guessing)
    axes.set_xlim(left=0)
    return unit


def draw_metric_by_clock(axes: Axes, rounds: Columns, guessing: float | None = None) -> tuple[float, str] | None:
    """Draw the metrics against the virtual clock; return the unit's seconds and name, or None without a clock or metric."""
    seconds = clock(rounds)
    if not np.isfinite(seconds[1:]).any():
        return None
    factor, unit = unit_of(float(np.nanmax(seconds)))
    drawn = [
        _line(axes, seconds / factor, _sorted(rounds, column), name, style) for column, name, style in METRIC_LINES
    ]
    if not any(drawn):
        return None
    draw_chance(axes, guessing)
    axes.set_xlim(left=0)
    return factor, unit


def clock(rounds: Columns) -> np.ndarray:
    """Return the virtual clock at the end of each round: 0 before the first, NaN without a clock."""
    return np.where(np.sort(rounds["round"]) == 0, 0.0, _sorted(rounds, "clock_seconds"))


def traffic(rounds: Columns) -> np.ndarray:
    """Return the bytes that all clients have received and sent by the end of each round."""
    return np.nancumsum(_sorted(rounds, "bytes_up")) + np.nancumsum(_sorted(rounds, "bytes_down"))


def draw_chance(axes: Axes, guessing: float | None) -> None:
    """Draw the line of guessing, if it is known."""
    if guessing is not None:
        axes.axhline(guessing, color=FAINT, lw=1.1, ls=(0, (1, 2)), zorder=1.5, label=f"chance, {guessing:.3g}")


def byte_unit(num_bytes: float) -> tuple[float, str]:
    """Return the decimal unit for a number of bytes: its size and its name."""
    return next(((factor, unit) for factor, unit in _UNITS if num_bytes >= factor), (1.0, "B"))


def metric_words(metric_name: str) -> str:
    """Return a metric's name for an axis."""
    return metric_name.replace("_", " ")


def _sorted(rounds: Columns, column: str) -> np.ndarray:
    order = np.argsort(rounds["round"], kind="stable")
    if column not in rounds:
        return np.full(len(order), math.nan)
    return rounds[column][order].astype(float)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, style: Mapping[str, Any]) -> bool:
    known = np.isfinite(y)
    if not known.any():
        return False
    marked = {"marker": style["marker"] if known.sum() <= _MARKED_POINTS else "", "ms": 4 if known.sum() > 1 else 7}
    axes.plot(x[known], y[known], **{**style, **marked}, lw=1.8, label=f"{name}, last {y[known][-1]:.3f}", zorder=3)
    return True


def _round_axis(axes: Axes, x: Sequence[float] | np.ndarray) -> None:
    if len(x) == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    whole_numbers(axes)


def whole_numbers(axes: Axes, most: int = 12, axis: Literal["x", "y"] = "x") -> None:
    """Let an axis have whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator(integer=True, nbins=most))
