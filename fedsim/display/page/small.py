"""Small figures, whose text stays readable on a narrow screen and side by side on a wide one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.display.figure import INK, dress, new_figures
from fedsim.display.page.inline import inline
from fedsim.display.page.parts import Figure, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH, HEIGHT = 4.2, 3.0
"""In inches; a figure is as wide as its column, at 340 to 560 pixels."""


def small(xlabel: str, ylabel: str, height: float = HEIGHT) -> tuple[Drawing, Axes]:
    """Return a small figure with axes, without a title: the page has that as text."""
    figure, (axes,) = new_figures(1, height, WIDTH, pad=0.035)
    dress(axes, None, xlabel, ylabel)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9.5)
    axes.tick_params(labelsize=9)
    return figure, axes


def legend_above(axes: Axes, columns: int = 2) -> None:
    """Put the legend above axes, where it covers nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=2.0, columnspacing=1.2, borderaxespad=0.2, labelspacing=0.3,
    )  # fmt: skip


def as_figure(drawing: Drawing, key: str, title: str, text: str, data: Table, hover: Axes | None = None) -> Figure:
    """Return a drawing as a part of a page."""
    return Figure(key, title, inline(drawing, key, title, text, hover), text, data)
