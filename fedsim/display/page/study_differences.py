"""Forest plots: paired differences of a study's arms from the reference, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.display.course import metric_words
from fedsim.display.figure import FAINT, INK, drawn
from fedsim.display.page.arms import ArmStyle
from fedsim.display.page.parts import Cell, Figure, Table, number_cell
from fedsim.display.page.small import as_figure, small
from fedsim.display.page.study_curves import text_metric, titled
from fedsim.study.measures import MEASURES
from fedsim.study.outcome import PairSummary
from fedsim.study.words import p_value

_ROW = 0.36
"""Inches of a row."""
_LONGEST = 22


@drawn
def forest(
    key: str, dataset: str, measure: str, metric_name: str, pairs: Sequence[PairSummary], styles: Mapping[str, ArmStyle]
) -> Figure | None:
    """Return the differences of all arms from the reference on a data set; None if there is no pair."""
    from matplotlib.ticker import MaxNLocator

    pairs = [pair for pair in pairs if pair.difference.n]
    if not pairs:
        return None
    of_texts = MEASURES[measure].kind == "text"
    name = _in_words(measure) if of_texts else f"{MEASURES[measure].label} {metric_words(metric_name)}"
    reference = pairs[0].reference
    figure, axes = small(f"difference in {name}", "", 0.9 + _ROW * len(pairs))
    for row, pair in enumerate(pairs):
        style, d = styles[pair.arm], pair.difference
        seeds = np.array(list(d.values.values()))
        axes.plot(seeds, np.full(len(seeds), row + 0.2), ls="", marker="|", ms=6, mew=1.0, color=FAINT, zorder=2)
        if math.isfinite(d.low):
            axes.plot([d.low, d.high], [row, row], color=style.color, lw=2.4, solid_capstyle="butt", zorder=3)
        filled: dict[str, Any] = {"mfc": style.color if pair.significant else "white", "mec": style.color, "mew": 1.6}
        axes.plot([d.mean], [row], ls="", marker=style.marker, ms=7, zorder=4, **filled)
    axes.axvline(0, color=INK, lw=0.9, zorder=1.8)
    axes.set_yticks(range(len(pairs)), [_short(pair.arm) for pair in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left"]].set_visible(False)
    low, high = axes.get_xlim()
    room = 0.06 * (max(high, 0.0) - min(low, 0.0))
    axes.set_xlim(min(low, -room), max(high, room))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    title = f"{titled(name)} against {reference}{f', {dataset}' if dataset else ''}"
    text = (
        f"Right of zero the arm is better than {reference}. Bars: 95% intervals of the mean; filled: the difference is shown; "
        "small strokes: single seeds."
    )
    return as_figure(figure, key, title, text, _table(title, pairs))


def _in_words(measure: str) -> str:
    """Return the figure of a text metric as curves call it."""
    whose, _, metric = measure.rpartition(".")
    return f"{'personalised ' if whose.startswith('personal') else ''}{text_metric(metric)} of written responses"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _table(title: str, pairs: Sequence[PairSummary]) -> Table:
    rows = tuple(
        (
            Cell(pair.arm),
            number_cell(pair.difference.mean),
            number_cell(pair.difference.low),
            number_cell(pair.difference.high),
            number_cell(float(pair.difference.n), "{:.0f}"),
            Cell(p_value(pair.p_holm).removeprefix("= "), pair.p_holm) if math.isfinite(pair.p_holm) else Cell("-"),
            Cell(pair.verdict),
        )
        for pair in pairs
    )
    return Table(title, ("arm", "difference", "from", "to", "seeds", "p (Holm)", "verdict"), rows)
