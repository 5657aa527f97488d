"""Layer scores, drawn on given axes: an axis that shows how they differ, not how far they are from zero.

Shape suffixes: L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.figure import BLUE, FAINT, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scores = Sequence[float] | Sequence[Sequence[float]] | np.ndarray
_MARGIN = 0.08


def draw_scores(axes: Axes, scores_L: Scores, chosen: Sequence[int], spread_2L: Scores | None = None) -> None:
    """Draw a point per layer, exchanged layers filled, with the spread over clients as a bar.

    A score that is not finite (a layer that was not scored) gets a mark instead. The axis is logarithmic if positive scores
    differ by a factor of fifty or more.

    Parameters
    ----------
    spread_2L
        Lower and upper end of the spread over clients, per layer; see
        :attr:`fedsim.simulation.layer_choice.LayerChoice.spread_2L`.
    """
    scores = np.asarray(scores_L, dtype=np.float64)  # None, in a score read back from JSON, becomes NaN
    finite = np.isfinite(scores)
    layers = np.arange(len(scores))
    taken = np.isin(layers, list(chosen))
    low, high = (scores, scores) if spread_2L is None else np.asarray(spread_2L, dtype=np.float64)
    styles: tuple[tuple[np.ndarray, str, dict[str, Any]], ...] = (
        (taken, "exchanged", {"color": BLUE, "marker": "o"}),
        (~taken, "not exchanged", {"color": GREY, "marker": "s"}),
    )
    for mask, label, style in styles:
        if (here := mask & finite).any():
            if spread_2L is not None:
                axes.vlines(layers[here], low[here], high[here], color=style["color"], lw=3.2, alpha=0.45, zorder=2)
            axes.plot(layers[here], scores[here], ls="", ms=7, label=label, zorder=3, **style)
    if spread_2L is not None:
        axes.plot([], [], color=FAINT, lw=3.2, alpha=0.45, label="middle 80% of the clients")
    for layer in layers[~finite]:
        axes.annotate("not scored", (layer, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="center",
                      va="bottom", fontsize=8, color=FAINT)  # fmt: skip
    ends = np.concatenate([scores[finite], low[finite], high[finite]])
    ends = ends[np.isfinite(ends)]
    if len(ends):
        _fit(axes, float(ends.min()), float(ends.max()))
    axes.set_xlim(-0.7, len(scores) - 0.3)
    axes.set_xticks(layers[:: 1 + (len(scores) - 1) // 24])
    axes.grid(visible=False, axis="x")


def _fit(axes: Axes, low: float, high: float) -> None:
    """Fit the axis to the scores; where they are equal, as much room as shows that."""
    if low > 0 and high >= 50 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        return
    room = _MARGIN * (high - low) or max(abs(high), 1.0) * 0.05
    axes.set_ylim(low - room, high + room)
