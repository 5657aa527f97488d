"""Plots of a run, drawn from its records, so that they can be redrawn at any time.

Shape suffixes: N clients, C classes, L layers, E edges between bars.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.figure import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    attempt,
    drawn,
    dress,
    new_figure,
    new_figures,
    save,
)
from fedsim.records.run_folder import RunFolder
from fedsim.records.tables import read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, np.ndarray]
"""Columns of ``rounds.parquet`` by name; NaN where not measured."""

_LIGHT_BLUE = "#9CCAE3"
_CLASSES = (
    "#332288", "#DDCC77", "#44AA99", "#CC6677", "#88CCEE", "#882255", "#117733", "#999933", "#AA4499", "#BBBBBB",
)  # fmt: skip
_MARKED_POINTS = 40
_LABELLED_CLIENTS = 40
_LISTED_CLASSES = 20
"""Most classes that a legend lists, each in its own colour."""
_NAMED_CLASSES = 16
"""Class names shown beside the colour scale if there are more."""
_LONGEST_NAME = 24


def write_plots(
    folder: RunFolder,
    *,
    metric_name: str | None = None,
    counts_NC: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    scores_L: Sequence[float] | np.ndarray | None = None,
    chosen: Sequence[int] = (),
    note: Callable[[str], None] = warnings.warn,
) -> list[Path]:
    """Draw all plots for which ``folder`` and the arguments have data, and return their paths.

    Parameters
    ----------
    folder
        Run folder; its ``rounds.parquet`` is read (call ``flush`` first).
    metric_name
        Name of the metric; if not given, that of ``summary.json``.
    counts_NC, class_names
        Number of examples per client and class, for the label distribution.
    scores_L, chosen
        Layer scores and the exchanged layers; if not given, those of the event ``layers``.
    note
        Called with a message for each plot that cannot be drawn; the others are drawn.
    """
    try:
        folder.plots.mkdir(exist_ok=True)
    except OSError as error:
        note(f"warning: there are no pictures: {folder.plots} cannot be made: {error.strerror or error}")
        return []
    if metric_name is None and folder.summary.exists():
        metric_name = json.loads(folder.summary.read_text(encoding="utf-8")).get("metric_name")
    pictures: dict[str, Callable[[Path], Path | None]] = {}
    if folder.rounds.exists():
        pictures["metric.png"] = lambda path: plot_metric(read_columns(folder.rounds), path, metric_name or "metric")
        pictures["loss.png"] = lambda path: plot_loss(read_columns(folder.rounds), path)
        pictures["bytes.png"] = lambda path: plot_bytes(read_columns(folder.rounds), path)
    if counts_NC is not None:
        names = class_names or [str(number) for number in range(counts_NC.shape[1])]
        pictures["label_distribution.png"] = lambda path: plot_label_distribution(counts_NC, names, path)
    if scores_L is None:
        for event in folder.events("layers"):
            scores_L, chosen = event["scores"], event["layers"]
    if scores_L is not None:
        pictures["layer_scores.png"] = lambda path: plot_layer_scores(scores_L, chosen, path)
    if spectra := folder.events("spectrum"):
        from fedsim.display.spectrum_plot import plot_spectrum

        pictures["spectrum.png"] = lambda path: plot_spectrum(spectra, folder.events("layers")[-1], path)
    written = [attempt(draw, folder.plots / name, note) for name, draw in pictures.items()]
    return [path for path in written if path is not None]


@drawn
def plot_metric(rounds: Columns, path: Path, metric_name: str = "metric") -> Path | None:
    """Draw the global and the personalised metric by round; None if neither was measured."""
    lines = [("global_metric", "global model", BLUE), ("personalised_metric", "personalised models", ORANGE)]
    name = metric_name.replace("_", " ")
    return _plot_lines(rounds, lines, path, title=f"{name[:1].upper()}{name[1:]} by round", label=name)


@drawn
def plot_loss(rounds: Columns, path: Path) -> Path | None:
    """Draw training and evaluation losses by round; None if none was measured."""
    lines = [
        ("train_loss_first", "training, first local epoch", GREY),
        ("train_loss_last", "training, last local epoch", BLUE),
        ("global_loss", "validation, global model", ORANGE),
        ("personalised_loss", "held-out, personalised models", GREEN),
    ]
    return _plot_lines(rounds, lines, path, title="Loss by round", label="cross-entropy (nats)")


@drawn
def plot_bytes(rounds: Columns, path: Path) -> Path | None:
    """Draw the clients' cumulative traffic by round, as stacked areas."""
    order = np.argsort(rounds["round"], kind="stable")
    x = rounds["round"][order]
    up, down = (np.nancumsum(rounds[name][order].astype(float)) for name in ("bytes_up", "bytes_down"))
    if len(x) == 0 or up[-1] + down[-1] == 0:
        return None
    if x[0] > 0:
        x, up, down = np.append(0, x), np.append(0.0, up), np.append(0.0, down)
    factor, unit = _byte_unit(up[-1] + down[-1])
    figure, axes = new_figure("Traffic, sum over all rounds so far", "round", f"traffic ({unit})")
    labels = [
        f"up, clients to server ({up[-1] / factor:.3g} {unit})",
        f"down, server to clients ({down[-1] / factor:.3g} {unit})",
    ]
    axes.stackplot(x, up / factor, down / factor, colors=[BLUE, _LIGHT_BLUE], labels=labels, linewidth=0)
    _legend(axes, reverse=True)
    axes.set_xlim(x[0], max(x[-1], x[0] + 1))
    axes.set_ylim(0)
    _whole_numbers(axes)
    return save(figure, path)


@drawn
def plot_label_distribution(counts_NC: np.ndarray, class_names: Sequence[str], path: Path) -> Path:
    """Draw how many examples of each class every client holds, and their proportions.

    Above, clients by size, stacked by class; below, their class shares, ordered by the most frequent class. More than 20
    classes are coloured along a scale in the order of the names, since so many colours could not be told apart.

    Parameters
    ----------
    counts_NC
        Number of examples of each client (N) and class (C).
    class_names
        Name of each class.
    path
        The PNG to write.
    """
    counts = np.asarray(counts_NC, dtype=np.float64)
    num_clients, num_classes = counts.shape
    sizes_N = counts.sum(axis=1)
    shares_NC = counts / np.maximum(sizes_N, 1)[:, None]
    by_size = np.argsort(-sizes_N, kind="stable")
    top_N = shares_NC.argmax(axis=1)
    by_mix = np.lexsort((-shares_NC[np.arange(num_clients), top_N], top_N))
    if num_classes == 2:
        by_mix = np.argsort(-shares_NC[:, 0], kind="stable")

    figure, (above, below) = new_figures(2, height=6.4)
    total = f"{num_clients:,} clients, {int(sizes_N.sum()):,} examples, {num_classes} classes"
    dress(above, f"Label distribution: {total}", "clients, largest first", "examples")
    dress(below, None, "clients, ordered by class mix", "share of examples")
    colors = class_colors(num_classes)
    _stacked_bars(above, counts[by_size], by_size, colors)
    _stacked_bars(below, shares_NC[by_mix], by_mix, colors)
    below.set_ylim(0, 1)
    if num_classes <= _LISTED_CLASSES:
        _class_legend(above, class_names, colors)
    else:
        _class_bar(figure, [above, below], class_names, colors)
    return save(figure, path)


@drawn
def plot_layer_scores(scores_L: Sequence[float] | np.ndarray, chosen: Sequence[int], path: Path) -> Path:
    """Draw the score of each layer; exchanged layers are highlighted.

    A score that is not finite (a layer that was not scored) gets a mark instead of a bar. The axis is logarithmic if
    positive scores differ by a factor of fifty or more.
    """
    scores = np.asarray(scores_L, dtype=np.float64)  # None, in a score read back from JSON, becomes NaN
    finite = np.isfinite(scores)
    layers = np.arange(len(scores))
    taken = np.isin(layers, list(chosen))
    title = f"Layer scores: {int(taken.sum())} of {len(scores)} layers exchanged"
    figure, axes = new_figure(title, "layer", "spectral score")
    for mask, color, label in ((taken, BLUE, "exchanged"), (~taken, GREY, "not exchanged")):
        if mask.any():
            axes.bar(layers[mask], np.where(finite, scores, 0.0)[mask], width=0.72, color=color, label=label, zorder=2)
    for layer in layers[~finite]:
        axes.annotate("not scored", (layer, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="center",
                      va="bottom", fontsize=8, color=FAINT)  # fmt: skip
    known = scores[finite]
    if len(known) and known.min() > 0 and known.max() >= 50 * known.min():
        axes.set_yscale("log")
    axes.set_xlim(-0.7, len(scores) - 0.3)
    axes.set_xticks(layers[:: 1 + (len(scores) - 1) // 24])
    axes.grid(visible=False, axis="x")
    # Above the axes: bars of similar height leave no room inside.
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path)


def _plot_lines(
    rounds: Columns, lines: Sequence[tuple[str, str, str]], path: Path, title: str, label: str
) -> Path | None:
    figure, axes = new_figure(title, "round", label)
    order = np.argsort(rounds["round"], kind="stable")
    x = rounds["round"][order]
    drawn = 0
    for column, name, color in lines:
        y = rounds[column][order].astype(float) if column in rounds else np.full(len(x), np.nan)
        known = np.isfinite(y)
        if known.any():
            marker = "o" if known.sum() <= _MARKED_POINTS else ""
            axes.plot(
                x[known], y[known], color=color, lw=1.8, marker=marker, ms=4, label=f"{name}, last {y[known][-1]:.3f}"
            )
            drawn += 1
    if not drawn:
        return None
    if len(x) == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    _whole_numbers(axes)
    _legend(axes)
    return save(figure, path)


def _stacked_bars(axes: Axes, heights_NC: np.ndarray, clients_N: np.ndarray, colors: Sequence[Any]) -> None:
    """Draw one stacked bar per client; many clients become one outline, without seams between thin bars."""
    num_clients = len(heights_NC)
    tops_NC = np.cumsum(heights_NC, axis=1)
    few = num_clients <= _LABELLED_CLIENTS
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
    if num_classes <= _LISTED_CLASSES:
        return [colormaps["tab20"](number) for number in range(num_classes)]
    return list(colormaps["turbo"](np.linspace(0.03, 0.97, num_classes)))


def _class_legend(axes: Axes, class_names: Sequence[str], colors: Sequence[Any]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=_short(name)) for name, color in zip(class_names, colors, strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9, labelcolor=INK
    )


def _class_bar(figure: Figure, all_axes: Sequence[Axes], class_names: Sequence[str], colors: Sequence[Any]) -> None:
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


def _legend(axes: Axes, reverse: bool = False) -> None:
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK, reverse=reverse)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _byte_unit(num_bytes: float) -> tuple[float, str]:
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((factor, unit) for factor, unit in units if num_bytes >= factor), (1.0, "B"))
