"""Figures of a run's page.

Shape suffixes: N clients, C classes, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.course import (
    GENERATED_LINES,
    LOSS_LINES,
    METRIC_LINES,
    Columns,
    clock,
    draw_generated,
    draw_loss,
    draw_metric,
    draw_metric_by_bytes,
    draw_metric_by_clock,
    metric_words,
    traffic,
)
from fedsim.display.figure import drawn
from fedsim.display.label_plot import (
    LISTED_CLASSES,
    class_bar,
    class_colors,
    order_by_mix,
    order_by_size,
    shares,
    stacked_bars,
)
from fedsim.display.page.parts import Cell, Figure, Figures, Key, Table, number_cell, thinned, thinned_note
from fedsim.display.page.small import as_figure, legend_above, small
from fedsim.display.page.swatches import patch
from fedsim.display.report import format_bytes, format_clock
from fedsim.display.run_words import CLASSES, GroupWords
from fedsim.display.score_plot import draw_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BARS = 2400
"""Of clients and classes that a figure shows; more clients are thinned out along their order, down to a few dozen."""
_FEW_CLIENTS = 60
_MOST_CELLS = 1500
"""Of the table of all clients and classes."""


@drawn
def course(rounds: Columns, metric_name: str, guessing: float | None) -> Figures | None:
    """Return the curves of metric, written responses and loss by round, and of the metric by simulated time and traffic; None
    without any.
    """
    found = [
        *_by_round(rounds, metric_name, guessing),
        *_generated(rounds),
        *_by_clock(rounds, metric_name, guessing),
        *_by_traffic(rounds, metric_name, guessing),
        *_loss(rounds),
    ]
    return Figures(tuple(found)) if found else None


def _by_round(rounds: Columns, metric_name: str, guessing: float | None) -> Iterator[Figure]:
    name = metric_words(metric_name)
    figure, axes = small("round", name)
    if draw_metric(axes, rounds, guessing):
        legend_above(axes, 1)
        text = f"The global model on the validation examples{_points(rounds)}{_guess(guessing)}."
        data = _lines_table("round", rounds["round"], rounds, METRIC_LINES, f"{name.capitalize()} by round")
        yield as_figure(figure, "by-round", f"{name.capitalize()} by round", text, data, axes)


def _generated(rounds: Columns) -> Iterator[Figure]:
    figure, axes = small("round", "mean over responses")
    if draw_generated(axes, rounds):
        legend_above(axes, 1)
        data = _lines_table("round", rounds["round"], rounds, GENERATED_LINES, "Written responses by round")
        text = "What the global model writes by itself, compared to the responses of the data; round 0 is before any training."
        if not np.isfinite([rounds[column][0] for column, _, _ in GENERATED_LINES if column in rounds]).any():
            text = text.partition(";")[0] + "."
        yield as_figure(figure, "generated", "Written responses by round", text, data, axes)


def _by_clock(rounds: Columns, metric_name: str, guessing: float | None) -> Iterator[Figure]:
    name = metric_words(metric_name)
    figure, axes = small("", name)
    unit = draw_metric_by_clock(axes, rounds, guessing)
    if unit is not None:
        factor, word = unit
        axes.set_xlabel(f"virtual clock ({word})")
        legend_above(axes, 1)
        seconds, title = clock(rounds), f"{name.capitalize()} by simulated time"
        data = _lines_table(f"virtual clock ({word})", seconds / factor, rounds, METRIC_LINES, title, "{:.4g}")
        text = f"When simulated devices had got there; the clock ends at {format_clock(float(np.nanmax(seconds)))}."
        yield as_figure(figure, "by-clock", title, text, data, axes)


def _by_traffic(rounds: Columns, metric_name: str, guessing: float | None) -> Iterator[Figure]:
    name = metric_words(metric_name)
    figure, axes = small("", name)
    unit = draw_metric_by_bytes(axes, rounds, guessing)
    if unit is not None:
        axes.set_xlabel(f"traffic of all clients, down and up ({unit})")
        legend_above(axes, 1)
        factor = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}[unit]
        data = _lines_table(
            f"traffic ({unit})",
            traffic(rounds) / factor,
            rounds,
            METRIC_LINES,
            f"{name.capitalize()} by traffic",
            "{:.4g}",
        )
        total = format_bytes(float(traffic(rounds)[-1]))
        text = f"What {total}, sent and received by all devices together, bought."
        yield as_figure(figure, "by-traffic", f"{name.capitalize()} by traffic", text, data, axes)


def _loss(rounds: Columns) -> Iterator[Figure]:
    figure, axes = small("round", "cross-entropy (nats)")
    if draw_loss(axes, rounds):
        legend_above(axes, 1)
        data = _lines_table("round", rounds["round"], rounds, LOSS_LINES, "Loss by round")
        text = "Mean over the clients of a round in their first and last local epoch, and on the validation examples."
        yield as_figure(figure, "loss", "Loss by round", text, data, axes)


def _points(rounds: Columns) -> str:
    known = np.isfinite(rounds.get("personalised_metric", np.array([])).astype(float)).sum()
    if not known:
        return ""
    return "; the diamond" + ("s are" if known > 1 else " is") + " the clients' own models on their held-out examples"


def _guess(guessing: float | None) -> str:
    return "" if guessing is None else "; dotted: chance, with all classes equally likely"


def _lines_table(
    first: str,
    x: np.ndarray,
    rounds: Columns,
    lines: Sequence[tuple[str, str, Mapping[str, Any]]],
    caption: str,
    form: str = "{:.0f}",
) -> Table:
    order = np.argsort(rounds["round"], kind="stable")
    known = [(name, rounds[column][order].astype(float)) for column, name, _ in lines if column in rounds]
    known = [(name, values) for name, values in known if np.isfinite(values).any()]
    x = np.sort(x) if first == "round" else x
    rows = [
        (number_cell(float(at), form), *(number_cell(float(values[row])) for _, values in known))
        for row, at in enumerate(x)
        if any(np.isfinite(values[row]) for _, values in known)
    ]
    columns = (first, *(name for name, _ in known))
    return Table(caption, columns, thinned(rows), thinned_note(rows, "rounds.parquet"), sortable=False)


@drawn
def label_figures(
    counts_NC: np.ndarray,
    class_names: Sequence[str],
    key: str = "labels",
    where: str = "",
    words: GroupWords = CLASSES,
) -> Figures:
    """Return who holds what: class mixes and sizes of the clients; sizes alone where there is one group of examples.

    Parameters
    ----------
    key
        Prefix of the figures' keys.
    where
        Of which data set, where a page has several.
    words
        What the classes are called.
    """
    colors = class_colors(len(class_names))
    most = min(240, max(_FEW_CLIENTS, _MOST_BARS // len(class_names)))
    by_mix, by_size = (_some(order(counts_NC), most) for order in (order_by_mix, order_by_size))
    few = len(class_names) <= LISTED_CLASSES
    drawings = []
    for rows, heights_NC, xlabel, ylabel in (
        (by_mix, shares(counts_NC)[by_mix], f"clients, ordered by {words.one} mix", "share of examples"),
        (by_size, np.asarray(counts_NC, dtype=float)[by_size], "clients, largest first", "examples"),
    ):
        figure, axes = small(xlabel, ylabel)
        stacked_bars(axes, heights_NC, rows, colors)
        _few_ticks(axes, rows)
        if not few:
            class_bar(figure, [axes], class_names, colors)
        drawings.append(figure)
    drawings[0].axes[0].set_ylim(0, 1)
    data = _labels_table(counts_NC, class_names, words)
    sizes = replace(data, columns=data.columns[:2], rows=tuple(row[:2] for row in data.rows))
    sizes_N = np.asarray(counts_NC).sum(axis=1)
    text = f"From {sizes_N.min():,} to {sizes_N.max():,} examples, median {np.median(sizes_N):,.0f}, held-out ones included."
    some = f" {len(by_mix)} of {len(sizes_N):,} clients." if len(by_mix) < len(sizes_N) else ""
    largest_N = shares(counts_NC).max(axis=1)
    mix = f"The largest {words.one} has {np.median(largest_N):.0%} of a client's examples (median).{some}"
    figures = (
        as_figure(drawings[0], f"{key}-mix", f"{words.one.capitalize()} mix of each client{where}", mix, data),
        as_figure(drawings[1], f"{key}-size", f"Examples of each client{where}", f"{text}{some}", sizes),
    )
    if len(class_names) == 1:
        return Figures(figures[1:])
    legend = tuple(Key(name, patch(color)) for name, color in zip(class_names, colors, strict=True)) if few else ()
    return Figures(figures, legend)


def _some(order_N: np.ndarray, most: int) -> np.ndarray:
    if len(order_N) <= most:
        return order_N
    return order_N[np.linspace(0, len(order_N) - 1, most).round().astype(int)]


def _few_ticks(axes: Axes, rows: np.ndarray) -> None:
    """Name every client where there is room, else none."""
    if len(rows) <= 16:
        axes.set_xticks(np.arange(len(rows)), [str(client) for client in rows], fontsize=9)
    else:
        axes.set_xticks([])


def _labels_table(counts_NC: np.ndarray, class_names: Sequence[str], words: GroupWords) -> Table:
    most = min(100, max(10, _MOST_CELLS // (len(class_names) + 2)))
    clients = [int(client) for client in order_by_size(counts_NC)]
    rows = [
        (
            Cell(str(client), client),
            number_cell(float(counts_NC[client].sum()), "{:,.0f}"),
            *(number_cell(float(count), "{:,.0f}") for count in counts_NC[client]),
        )
        for client in clients[:most]
    ]
    all_shown = len(rows) == len(clients)
    note = "" if all_shown else f"The {len(rows)} largest of {len(clients):,} clients; all are in labels.parquet."
    title = f"Examples of each client and {words.one}" if len(class_names) > 1 else "Examples of each client"
    return Table(title, ("client", "examples", *class_names), tuple(rows), note)


@drawn
def score_figures(choice: Mapping[str, Any]) -> Figures | None:
    """Return the layer scores of an event ``layers``; None if layers were not scored."""
    scores, spread, chosen = choice.get("scores"), choice.get("scores_spread"), choice["layers"]
    if scores is None:
        return None
    figure, axes = small("layer", "spectral score")
    draw_scores(axes, scores, chosen, spread)
    legend_above(axes, 2)
    low, high = spread if spread is not None else ([None] * len(scores), [None] * len(scores))
    rows = tuple(
        (
            Cell(str(layer), layer),
            number_cell(score),
            *((number_cell(low[layer]), number_cell(high[layer])) if spread is not None else ()),
            Cell("yes" if layer in chosen else "no"),
        )
        for layer, score in enumerate(scores)
    )
    spread_columns = ("lower end of the middle 80%", "upper end") if spread is not None else ()
    data = Table("Layer scores", ("layer", "score", *spread_columns, "exchanged"), rows)
    text = "The axis starts near the lowest score, not at zero"
    text += "; bars: the middle 80% of the clients, each moved to the common level." if spread is not None else "."
    return Figures((as_figure(figure, "scores", "Score of each layer", text, data),))
