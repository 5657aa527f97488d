"""How the clients fare: the metric of each on its held-out examples, drawn on given axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.figure import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = tuple[str, Sequence[float] | np.ndarray, Mapping[str, Any]]
"""Name, one value per client, and style."""
MARKS = ((10.0, "worst decile"), (50.0, "median"))
"""Shares of the clients that are marked, in percent."""
_ROOM = 0.12
"""Share of the height that is left above the lines for the names of the marks."""


def draw_clients(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw each line's values in ascending order, against the share of the clients that they are the worst of.

    Parameters
    ----------
    lines
        Name, one value per client, and style.
    """
    for name, values, style in lines:
        values = np.sort(np.asarray(values, dtype=np.float64)[np.isfinite(values)])
        if len(values):
            below = 100.0 * np.arange(len(values) + 1) / len(values)
            axes.step(below, np.append(values, values[-1]), where="post", lw=1.8, label=name, zorder=3, **style)
    # Above all lines: the worst clients' values begin at the lower left, where names would lie under them.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + _ROOM * (high - low))
    for share, name in MARKS:
        axes.axvline(share, color=FAINT, lw=0.8, ls=(0, (1, 2)), zorder=1.5)
        axes.annotate(name, (share, 0.98), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
                      fontsize=8.5, color=FAINT, va="top")  # fmt: skip
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
