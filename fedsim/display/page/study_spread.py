"""How the clients of a study's arms fare, and which layers the arms exchange.

Shape suffixes: L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.display.course import metric_words
from fedsim.display.figure import BLUE, FAINT, GREY, INK, drawn
from fedsim.display.page.arms import ArmStyle
from fedsim.display.page.parts import Cell, Figure, Table, number_cell
from fedsim.display.page.small import as_figure, small

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedsim.study.figures import CellFigures

_ROW = 0.36
_LONGEST = 22
Arms = Mapping[str, Sequence["CellFigures"]]
"""Cells by arm, on one data set."""


@drawn
def client_spread(key: str, dataset: str, arms: Arms, styles: Mapping[str, ArmStyle]) -> Figure | None:
    """Return the spread of the metric over the clients of each arm; None if it was not measured."""
    after = {arm: _values(cells, "after") for arm, cells in arms.items()}
    after = {arm: values for arm, values in after.items() if len(values)}
    if not after:
        return None
    name = metric_words(next(cell for cells in arms.values() for cell in cells).metric_name)
    figure, axes = small(f"{name} on held-out examples", "", 0.9 + _ROW * len(after))
    rows = []
    for row, (arm, values) in enumerate(after.items()):
        worst, low, middle, high, best = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
        color = styles[arm].color
        axes.plot([worst, best], [row, row], color=color, lw=1.0, zorder=2)
        axes.plot([low, high], [row, row], color=color, lw=6, alpha=0.45, solid_capstyle="butt", zorder=2)
        axes.plot([middle], [row], ls="", marker=styles[arm].marker, ms=7, color=color, zorder=4)
        before = _values(arms[arm], "before")
        if len(before):
            axes.plot([np.median(before)], [row], ls="", marker="|", ms=13, mew=1.6, color=FAINT, zorder=3)
        figures = (middle, low, worst, high, best, np.median(before) if len(before) else np.nan)
        rows.append(
            (Cell(arm), number_cell(float(len(values)), "{:,.0f}"), *(number_cell(float(each)) for each in figures))
        )
    _rows(axes, list(after))
    title = f"{name.capitalize()} of the clients{f', {dataset}' if dataset else ''}"
    columns = ("arm", "clients", "median", "worst decile", "worst", "best decile", "best", "median without tuning")
    text = "Point: the median client; thick: the middle 80%; thin: all. Grey stroke: the median without tuning. Seeds pooled."
    return as_figure(figure, key, title, text, Table(title, columns, tuple(rows)))


def _values(cells: Sequence[CellFigures], name: str) -> np.ndarray:
    values = np.array([each.get(name, np.nan) for cell in cells for each in cell.clients.values()], dtype=float)
    return values[np.isfinite(values)]


@drawn
def layer_scores(key: str, dataset: str, arms: Arms, styles: Mapping[str, ArmStyle]) -> Figure | None:
    """Return the layer scores of each arm, mean over seeds; None if no arm scored its layers."""
    found: dict[str, np.ndarray] = {}
    for arm, cells in arms.items():
        scored = [cell.scores for cell in cells if cell.scores]
        if scored and len({len(each) for each in scored}) == 1:
            found[arm] = np.array(scored, dtype=float)
    if not found:
        return None
    # Arms that score with the same model and data have the same scores: one line for them.
    same: dict[bytes, list[str]] = {}
    for arm, scores in found.items():
        same.setdefault(scores.tobytes(), []).append(arm)
    figure, axes = small("layer", "spectral score")
    rows = []
    for names in same.values():
        scores, style = found[names[0]], styles[names[0]]
        mean_L, low_L, high_L = scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0)
        layers = np.arange(len(mean_L))
        axes.vlines(layers, low_L, high_L, color=style.color, lw=2.6, alpha=0.4, zorder=2, gid=style.gid)
        axes.plot(layers, mean_L, marker=style.marker, ms=5, zorder=3, **style.line())
        rows += [
            (
                Cell(", ".join(names)),
                Cell(str(layer), layer),
                *map(number_cell, (mean_L[layer], low_L[layer], high_L[layer])),
            )
            for layer in layers.tolist()
        ]
    axes.set_xticks(range(0, len(mean_L), 1 + (len(mean_L) - 1) // 12))
    title = f"Layer scores{f', {dataset}' if dataset else ''}"
    text = "Mean over seeds; bars: the least and the most. The axis does not start at zero."
    if len(found) > len(same):
        shared = "; ".join(", ".join(names) for names in same.values() if len(names) > 1)
        text += f" The same for: {shared}."
    return as_figure(figure, key, title, text, Table(title, ("arm", "layer", "mean", "least", "most"), tuple(rows)))


@drawn
def exchanged_layers(key: str, dataset: str, arms: Arms) -> Figure | None:
    """Return in how many seeds each arm exchanges each layer; None if all arms exchange all layers."""
    choices = {arm: [cell.layers for cell in cells] for arm, cells in arms.items() if cells}
    most = max((layer for each in choices.values() for layers in each for layer in layers), default=-1) + 1
    if all(len(layers) == most for each in choices.values() for layers in each):
        return None
    shares = {
        arm: np.array([np.mean([at in layers for layers in each]) for at in range(most)])
        for arm, each in choices.items()
    }
    figure, axes = small("layer", "", 0.9 + _ROW * len(shares))
    for row, share_L in enumerate(shares.values()):
        for layer, share in enumerate(share_L):
            axes.plot([layer], [row], ls="", marker="s", ms=9, mfc="none", mec=GREY, mew=0.8, zorder=2)
            if share > 0:
                axes.plot([layer], [row], ls="", marker="s", ms=9 * share**0.5, color=BLUE, zorder=3)
    _rows(axes, list(shares))
    axes.set_xticks(range(0, most, 1 + (most - 1) // 12))
    axes.set_xlim(-0.6, most - 0.4)
    axes.grid(visible=False)
    title = f"Exchanged layers{f', {dataset}' if dataset else ''}"
    rows = tuple((Cell(arm), *(number_cell(share, "{:.0%}") for share in share_L)) for arm, share_L in shares.items())
    data = Table(title, ("arm", *(f"layer {layer}" for layer in range(most))), rows)
    return as_figure(
        figure, key, title, "A full square: the arm exchanges the layer in every seed; a small one: in some.", data
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(
        range(len(names)), [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    )
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines[["left"]].set_visible(False)
