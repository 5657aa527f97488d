"""Who holds what: the label distribution over clients, drawn on given axes.

Shape suffixes: N clients, C classes, E edges between bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.figure import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLASSES = (
    "#332288", "#DDCC77", "#44AA99", "#CC6677", "#88CCEE", "#882255", "#117733", "#999933", "#AA4499", "#BBBBBB",
)  # fmt: skip
LABELLED_CLIENTS = 40
LISTED_CLASSES = 20
"""Most classes that a legend lists, each in its own colour."""
_NAMED_CLASSES = 16
"""Class names shown beside the colour scale if there are more."""
_LONGEST_NAME = 24


def shares(counts_NC: np.ndarray) -> np.ndarray:
    """Return each client's class shares."""
    counts = np.asarray(counts_NC, dtype=np.float64)
    return counts / np.maximum(counts.sum(axis=1), 1)[:, None]


def order_by_mix(counts_NC: np.ndarray) -> np.ndarray:
    """Return the clients ordered by their class mix: by the share of the first of two classes, else by the largest class."""
    shares_NC = shares(counts_NC)
    if shares_NC.shape[1] == 2:
        return np.argsort(-shares_NC[:, 0], kind="stable")
    top_N = shares_NC.argmax(axis=1)
    return np.lexsort((-shares_NC[np.arange(len(shares_NC)), top_N], top_N))


def order_by_size(counts_NC: np.ndarray) -> np.ndarray:
    """Return the clients ordered by their number of examples, the largest first."""
    return np.argsort(-np.asarray(counts_NC).sum(axis=1), kind="stable")


def stacked_bars(axes: Axes, heights_NC: np.ndarray, clients_N: np.ndarray, colors: Sequence[Any]) -> None:
    """Draw one stacked bar per client; many clients become one outline, without seams between thin bars."""
    num_clients = len(heights_NC)
    tops_NC = np.cumsum(heights_NC, axis=1)
    few = num_clients <= LABELLED_CLIENTS
    for number, color in enumerate(colors):
        bottom_N = tops_NC[:, number] - heights_NC[:, number]
        if few:
            axes.bar(np.arange(num_clients), heights_NC[:, number], 0.86, bottom_N, color=color, linewidth=0, zorder=2)
        else:
            edges_E = np.arange(num_clients + 1) - 0.5
            low_E, high_E = (np.append(value_N, value_N[-1]) for value_N in (bottom_N, tops_NC[:, number]))
            axes.fill_between(edges_E, low_E, high_E, step="post", color=color, lw=0, antialiased=False, zorder=2)
    axes.set_xlim(-0.5, num_clients - 0.5)
    axes.set_ylim(0, max(float(tops_NC[:, -1].max()), 1e-9) * 1.02)
    axes.grid(visible=False, axis="x")
    if few:
        axes.set_xticks(np.arange(num_clients), [str(client) for client in clients_N], fontsize=8)
    else:
        axes.set_xticks([])


def class_colors(num_classes: int) -> list[Any]:
    """Return a colour for each class: distinct ones if there are enough, else along a scale."""
    from matplotlib import colormaps

    if num_classes <= len(_CLASSES):
        return list(_CLASSES[:num_classes])
    if num_classes <= LISTED_CLASSES:
        return [colormaps["tab20"](number) for number in range(num_classes)]
    return list(colormaps["turbo"](np.linspace(0.03, 0.97, num_classes)))


def class_legend(axes: Axes, class_names: Sequence[str], colors: Sequence[Any]) -> None:
    """List the classes and their colours beside axes."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=_short(name)) for name, color in zip(class_names, colors, strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=INK
    )


def class_bar(figure: Figure, all_axes: Sequence[Axes], class_names: Sequence[str], colors: Sequence[Any]) -> None:
    """Draw the classes' colour scale beside the plots, with some class names."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    many = len(class_names)
    edges = np.arange(many + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, many), ListedColormap(colors))
    bar = figure.colorbar(scale, ax=all_axes, fraction=0.03, pad=0.02, aspect=40, drawedges=False)
    named = np.unique(np.linspace(0, many - 1, _NAMED_CLASSES).round().astype(int))
    # These names are axis labels, where a dollar sign would start a formula.
    bar.set_ticks(
        [float(number) for number in named],
        labels=[_short(class_names[number]).replace("$", r"\$") for number in named],
    )
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=9, color=FAINT, labelcolor=INK)
    bar.outline.set_visible(False)
    bar.set_label(f"class, {len(named)} of {many} named", fontsize=9, color=INK)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
