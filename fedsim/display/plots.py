"""Plots of a run, drawn from its records, so that they can be redrawn at any time.

Shape suffixes: N clients, C classes, L layers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.display.course import (
    Columns,
    chance,
    draw_generated,
    draw_loss,
    draw_metric,
    draw_metric_by_bytes,
    metric_words,
    with_final,
    with_generated,
)
from fedsim.display.figure import INK, Stamp, attempt, drawn, dress, new_figure, new_figures, save
from fedsim.display.label_plot import (
    LISTED_CLASSES,
    class_bar,
    class_colors,
    class_legend,
    order_by_mix,
    order_by_size,
    shares,
    stacked_bars,
)
from fedsim.display.run_words import CLASSES, GroupWords
from fedsim.display.score_plot import Scores, draw_scores
from fedsim.display.timeline import draw_timeline, first_steps
from fedsim.records.run_folder import RunFolder
from fedsim.records.tables import read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_bytes", "plot_generated", "plot_label_distribution", "plot_layer_scores", "plot_loss", "plot_metric", "plot_timeline",
    "write_plots",
]  # fmt: skip


def write_plots(
    folder: RunFolder,
    *,
    metric_name: str | None = None,
    counts_NC: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    words: GroupWords = CLASSES,
    stamp: Stamp | None = None,
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
    words
        What the classes are called there.
    stamp
        What is written below each plot, and whether it has an SVG beside it.
    note
        Called with a message for each plot that cannot be drawn; the others are drawn.
    """
    try:
        folder.plots.mkdir(exist_ok=True)
    except OSError as error:
        note(f"warning: there are no pictures: {folder.plots} cannot be made: {error.strerror or error}")
        return []
    summary = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.exists() else {}
    metric = metric_name or summary.get("metric_name") or "metric"
    guessing = chance(metric, None if counts_NC is None else np.shape(counts_NC)[1])
    pictures: dict[str, Callable[[Path], Path | None]] = {}
    if folder.rounds.exists():
        rounds = with_final(read_columns(folder.rounds), summary.get("personalised_metric"))
        texts = with_generated(rounds, summary.get("generated"))
        pictures["metric.png"] = lambda path: plot_metric(rounds, path, metric, guessing, stamp)
        pictures["loss.png"] = lambda path: plot_loss(rounds, path, stamp)
        pictures["bytes.png"] = lambda path: plot_bytes(rounds, path, metric, guessing, stamp)
        pictures["generated.png"] = lambda path: plot_generated(texts, path, stamp)
        if folder.visits.exists():
            visits = read_columns(folder.visits)
            pictures["timeline.png"] = lambda path: plot_timeline(rounds, visits, path, stamp)
    if counts_NC is not None:
        names = class_names or [str(number) for number in range(counts_NC.shape[1])]
        pictures["label_distribution.png"] = lambda path: plot_label_distribution(counts_NC, names, path, stamp, words)
    choices = folder.events("layers")
    if choices and choices[-1]["scores"] is not None:
        choice = choices[-1]
        scores, spread = choice["scores"], choice.get("scores_spread")
        pictures["layer_scores.png"] = lambda path: plot_layer_scores(scores, choice["layers"], path, spread, stamp)
    if spectra := folder.events("spectrum"):
        from fedsim.display.spectrum_plot import plot_spectrum

        pictures["spectrum.png"] = lambda path: plot_spectrum(spectra, choices[-1], path, stamp)
    written = [attempt(draw, folder.plots / name, note) for name, draw in pictures.items()]
    return [path for path in written if path is not None]


@drawn
def plot_metric(
    rounds: Columns,
    path: Path,
    metric_name: str = "metric",
    guessing: float | None = None,
    stamp: Stamp | None = None,
) -> Path | None:
    """Draw the global and the personalised metric by round, and chance; None if neither was measured."""
    name = metric_words(metric_name)
    figure, axes = new_figure(f"{name[:1].upper()}{name[1:]} by round", "round", name)
    if not draw_metric(axes, rounds, guessing):
        return None
    _legend(axes)
    return save(figure, path, stamp)


@drawn
def plot_loss(rounds: Columns, path: Path, stamp: Stamp | None = None) -> Path | None:
    """Draw training and evaluation losses by round; None if none was measured."""
    figure, axes = new_figure("Loss by round", "round", "cross-entropy (nats)")
    if not draw_loss(axes, rounds):
        return None
    _legend(axes)
    return save(figure, path, stamp)


@drawn
def plot_generated(rounds: Columns, path: Path, stamp: Stamp | None = None) -> Path | None:
    """Draw the metrics of written responses by round; None if the model wrote none."""
    figure, axes = new_figure("Written responses by round", "round", "mean over responses")
    if not draw_generated(axes, rounds):
        return None
    _legend(axes)
    return save(figure, path, stamp)


@drawn
def plot_bytes(
    rounds: Columns,
    path: Path,
    metric_name: str = "metric",
    guessing: float | None = None,
    stamp: Stamp | None = None,
) -> Path | None:
    """Draw the metrics against the traffic of all clients so far; None if there was none, or no metric."""
    name = metric_words(metric_name)
    figure, axes = new_figure(f"{name[:1].upper()}{name[1:]} by traffic", "", name)
    unit = draw_metric_by_bytes(axes, rounds, guessing)
    if unit is None:
        return None
    axes.set_xlabel(f"traffic of all clients so far, down and up ({unit})")
    _legend(axes)
    return save(figure, path, stamp)


@drawn
def plot_timeline(rounds: Columns, visits: Columns, path: Path, stamp: Stamp | None = None) -> Path | None:
    """Draw what simulated devices did in the first rounds, on the virtual clock; None without a clock."""
    figure, axes = new_figure("First rounds on the virtual clock", "", "client")
    unit = draw_timeline(axes, rounds, visits, first_steps(visits))
    if unit is None:
        return None
    axes.set_xlabel(f"virtual clock ({unit})")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path, stamp)


@drawn
def plot_label_distribution(
    counts_NC: np.ndarray,
    class_names: Sequence[str],
    path: Path,
    stamp: Stamp | None = None,
    words: GroupWords = CLASSES,
) -> Path:
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
    words
        What the classes are called.
    """
    counts = np.asarray(counts_NC, dtype=np.float64)
    num_clients, num_classes = counts.shape
    by_size, by_mix = order_by_size(counts), order_by_mix(counts)
    colors = class_colors(num_classes)
    total = f"{num_clients:,} clients, {int(counts.sum()):,} examples"
    if num_classes == 1:
        figure, axes = new_figure(f"Examples of each client: {total}", "clients, largest first", "examples")
        stacked_bars(axes, counts[by_size], by_size, colors)
        return save(figure, path, stamp)
    figure, (above, below) = new_figures(2, height=6.4)
    dress(above, f"Label distribution: {total}, {num_classes} {words.several}", "clients, largest first", "examples")
    dress(below, None, f"clients, ordered by {words.one} mix", "share of examples")
    stacked_bars(above, counts[by_size], by_size, colors)
    stacked_bars(below, shares(counts)[by_mix], by_mix, colors)
    below.set_ylim(0, 1)
    if num_classes <= LISTED_CLASSES:
        class_legend(above, class_names, colors)
    else:
        class_bar(figure, [above, below], class_names, colors)
    return save(figure, path, stamp)


@drawn
def plot_layer_scores(
    scores_L: Scores,
    chosen: Sequence[int],
    path: Path,
    spread_2L: Scores | None = None,
    stamp: Stamp | None = None,
) -> Path:
    """Draw the score of each layer, with its spread over clients if it is known; exchanged layers are highlighted.

    See :func:`fedsim.display.score_plot.draw_scores`.
    """
    taken = sum(layer in set(chosen) for layer in range(len(scores_L)))
    title = f"Layer scores: {taken} of {len(scores_L)} layers exchanged"
    figure, axes = new_figure(title, "layer", "spectral score")
    draw_scores(axes, scores_L, chosen, spread_2L)
    # Below the axes: points at all heights leave no room inside.
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.12), ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path, stamp)


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
