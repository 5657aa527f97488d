"""The first rounds on the virtual clock: what each device did when, and whose result did not count, drawn on given axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedsim.display.figure import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PINK, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_VISITS, MOST_STEPS, MOST_CLIENTS = 40, 30, 40
"""Visits from which no further steps are drawn, and steps and devices at most."""
PHASES = (
    ("waits to be in reach", "drawn_seconds", "began_seconds", GREY),
    ("receives", "began_seconds", "received_seconds", SKY),
    ("trains", "received_seconds", "trained_seconds", BLUE),
    ("sends", "trained_seconds", "ended_seconds", GREEN),
)
"""Parts of a visit: word, columns of ``visits.parquet`` at its ends, and colour."""
OUTCOMES = {
    "late": ("late", ORANGE, "x"),
    "absent": ("out of reach", INK, "|"),
    "failed": ("training failed", PINK, "X"),
}
"""Visits that do not count: word, colour and marker."""
UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_HEIGHT = 0.62


def draw_timeline(
    axes: Axes,
    rounds: Mapping[str, np.ndarray],
    visits: Mapping[str, np.ndarray],
    steps: int,
    most: int = MOST_CLIENTS,
) -> str | None:
    """Draw the visits of the first server steps, a row for each device; return the unit of time, or None without a clock.

    Parameters
    ----------
    rounds
        Columns ``round`` and ``clock_seconds`` of ``rounds.parquet``.
    visits
        Columns of ``visits.parquet``.
    steps
        Server steps, from the first.
    most
        Devices, from the first that were drawn.
    """
    ends = ends_of(rounds, steps)
    first = np.flatnonzero(visits["round"] <= steps)
    if not len(first) or not ends:
        return None
    last = max(ends.values())
    factor, unit = unit_of(last)
    order = rows_of(visits, first)[:most]
    row = {client: place for place, client in enumerate(order)}
    drawn = [index for index in first.tolist() if visits["client"][index] in row]
    _draw_phases(axes, visits, drawn, row, factor)
    kinds = _draw_outcomes(axes, visits, drawn, row, (factor, 1.02 * last / factor))
    for seconds in ends.values():
        axes.axvline(seconds / factor, color=FAINT, lw=0.9, ls=(0, (1, 2)), zorder=1.5)
    _explain(axes, visits, drawn, kinds)
    size = 7 if len(order) > 14 else 9
    axes.set_yticks(range(len(order)), [str(client) for client in order], fontsize=size)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1.03 * last / factor)  # late results may arrive much later
    axes.grid(visible=False, axis="y")
    return unit


def first_steps(visits: Mapping[str, np.ndarray]) -> int:
    """Return how many of the first server steps make a picture, two at least."""
    sizes = np.bincount(visits["round"].astype(np.int64))[1:]
    return int(np.clip(np.searchsorted(np.cumsum(sizes), MOST_VISITS) + 1, 2, MOST_STEPS))


def ends_of(rounds: Mapping[str, np.ndarray], steps: int) -> dict[int, float]:
    """Return when each of the first steps ended, by number."""
    known = np.isfinite(rounds["clock_seconds"].astype(float)) & (rounds["round"] >= 1) & (rounds["round"] <= steps)
    return dict(
        zip(rounds["round"][known].tolist(), rounds["clock_seconds"][known].astype(float).tolist(), strict=True)
    )


def unit_of(seconds: float) -> tuple[float, str]:
    """Return the unit in which a time is a number from two up: its seconds and its name."""
    return next(((factor, name) for factor, name in UNITS if seconds >= 2 * factor), UNITS[-1])


def rows_of(visits: Mapping[str, np.ndarray], indices: np.ndarray) -> list[int]:
    """Return the clients of some visits, in the order in which they were drawn first."""
    ordered = indices[np.argsort(visits["drawn_seconds"][indices].astype(float), kind="stable")]
    return list(dict.fromkeys(visits["client"][ordered].tolist()))


def _draw_phases(
    axes: Axes, visits: Mapping[str, np.ndarray], drawn: list[int], row: Mapping[int, int], factor: float
) -> None:
    """Draw the parts of visits; of one that was lost, the part at which it was ends with it."""
    rows = np.array([row[client] for client in visits["client"][drawn].tolist()])
    ended = visits["ended_seconds"][drawn].astype(float)
    for name, begins, ends, color in PHASES:
        start, end = (visits[column][drawn].astype(float) for column in (begins, ends))
        end = np.where(np.isfinite(end), end, ended)
        shown = np.isfinite(start) & (end > start)
        if not shown.any():
            continue
        height = _HEIGHT / 3 if begins == "drawn_seconds" else _HEIGHT
        counts = visits["outcome"][drawn] == "taken"
        for some, alpha in ((shown & counts, 1.0), (shown & ~counts, 0.45)):
            if some.any():  # an edge of its own colour keeps the shortest part visible
                axes.barh(
                    rows[some], (end - start)[some] / factor, left=start[some] / factor, height=height, color=color,
                    edgecolor=color, lw=0.5, alpha=alpha, zorder=3, gid=f"timeline-{name}",
                )  # fmt: skip


def _draw_outcomes(
    axes: Axes, visits: Mapping[str, np.ndarray], drawn: list[int], row: Mapping[int, int], scale: tuple[float, float]
) -> set[str]:
    """Mark where visits end that do not count, at the latest at the edge of the picture; return which kinds there are."""
    kinds = set()
    factor, edge = scale
    for index in drawn:
        outcome = str(visits["outcome"][index])
        if outcome in OUTCOMES:
            _, color, marker = OUTCOMES[outcome]
            at = min(float(visits["ended_seconds"][index]) / factor, edge)
            axes.plot(at, row[visits["client"][index]], color=color, marker=marker, ms=6, mew=1.6, ls="", zorder=4)
            kinds.add(outcome)
    return kinds


def _explain(axes: Axes, visits: Mapping[str, np.ndarray], drawn: list[int], kinds: set[str]) -> None:
    waited = (visits["began_seconds"][drawn].astype(float) > visits["drawn_seconds"][drawn].astype(float)).any()
    for name, begins, _, color in PHASES:
        if begins != "drawn_seconds" or waited:
            axes.plot([], [], color=color, lw=2 if begins == "drawn_seconds" else 6, label=name)
    for kind, (word, color, marker) in OUTCOMES.items():
        if kind in kinds:
            axes.plot([], [], color=color, marker=marker, mew=1.6, ls="", label=word)
    axes.plot([], [], color=FAINT, lw=0.9, ls=(0, (1, 2)), label="server step")
