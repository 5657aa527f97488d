"""Figures of a run on simulated devices: what they did when, who took part, and how stale results were.

Shape suffixes: N clients, C classes, V visits, T times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.display.course import Columns, whole_numbers
from fedsim.display.figure import BLUE, FAINT, GREY, drawn
from fedsim.display.page.parts import Cell, Figure, Figures, Table, number_cell, text_cells, thinned, thinned_note
from fedsim.display.page.small import as_figure, legend_above, small
from fedsim.display.report import format_seconds
from fedsim.display.timeline import draw_timeline, ends_of, first_steps, rows_of, unit_of
from fedsim.records.participation import PARTS, by_label, by_speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedsim.records.recorded_run import RecordedRun

_ROWS = 18
"""Devices of the timeline, at most."""
_SAMPLES = 160
_LABELS = 16
_WIDTH = 0.38


@drawn
def world_figures(run: RecordedRun) -> Figures | None:
    """Return the figures of a run on simulated devices; None without any."""
    rounds, clients = _columns(run.rounds), _columns(run.clients)
    visits, devices = _columns(run.visits), _columns(run.devices)
    found: list[Figure] = []
    if len(visits["client"]) and len(devices["client"]):
        at_work = _at_work(visits, devices, rounds, buffered=run.config.buffer is not None)
        found += [*_timeline(rounds, visits), at_work, _by_speed(visits, devices)]
        if run.labels is not None:
            found.append(_by_label(visits, *run.labels))
    if run.config.buffer is not None:
        found += _staleness(clients)
    return Figures(tuple(found)) if found else None


def _columns(table: object) -> dict[str, np.ndarray]:
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    return {name: table[name].to_numpy() for name in table.column_names}


def _timeline(rounds: Columns, visits: Columns) -> Iterator[Figure]:
    steps = first_steps(visits)
    if not (ends := ends_of(rounds, steps)):
        return
    shown = np.flatnonzero(visits["round"] <= steps)
    count = min(len(rows_of(visits, shown)), _ROWS)
    figure, axes = small("", "client", 1.2 + 0.155 * count)
    unit = draw_timeline(axes, rounds, visits, steps, _ROWS)
    axes.set_xlabel(f"virtual clock ({unit})")
    legend_above(axes, 2)
    names = ("drawn_seconds", "began_seconds", "received_seconds", "trained_seconds", "ended_seconds")
    rows = [
        (
            Cell(str(visits["client"][at]), int(visits["client"][at])),
            Cell(str(visits["round"][at]), int(visits["round"][at])),
            *text_cells(str(visits["outcome"][at])),
            *(number_cell(float(visits[name][at]), "{:,.2f}") for name in names),
        )
        for at in shown.tolist()
    ]
    columns = ("client", "round", "outcome", "drawn (s)", "began", "received", "trained", "ended")
    data = Table("Visits of the first rounds", columns, thinned(rows), thinned_note(rows, "visits.parquet"))
    text = (
        f"A row for each device, in the order in which they were drawn, until step {max(ends)}. Pale parts are of visits whose "
        "results do not count; dotted lines are the server's steps."
    )
    yield as_figure(figure, "timeline", "First rounds on the virtual clock", text, data)


def _at_work(visits: Columns, devices: Columns, rounds: Columns, *, buffered: bool) -> Figure:
    """Return how many devices receive, train or send at a time."""
    end = float(np.nanmax(rounds["clock_seconds"].astype(float)))
    began_V, ended_V = (visits[name].astype(float) for name in ("began_seconds", "ended_seconds"))
    time_T = np.linspace(0.0, end, _SAMPLES + 1)
    began_T, ended_T = (np.searchsorted(np.sort(times), time_T, side="right") for times in (began_V, ended_V))
    count_T = began_T - ended_T
    factor, unit = unit_of(end)
    figure, axes = small(f"virtual clock ({unit})", "devices at work")
    axes.fill_between(time_T / factor, count_T, step="post", color=BLUE, alpha=0.25, lw=0, zorder=2)
    axes.step(time_T / factor, count_T, where="post", color=BLUE, lw=1.4, zorder=3)
    axes.set_xlim(0, end / factor)
    axes.set_ylim(bottom=0)
    whole_numbers(axes, 6, "y")
    busy = float(np.clip(np.minimum(ended_V, end) - began_V, 0.0, None).sum())
    able = int((devices["drawable"] == "yes").sum())
    mean = busy / end if end else 0.0
    text = (
        f"Receiving, training or sending: {mean:.3g} devices in the mean, {mean / max(able, 1):.2%} of the {able:,} that can "
        "be drawn, whether their results count or not."
    )
    if buffered:
        text += " Visits still under way when the run ended are on no record, so the curve falls at its end."
    rows = [
        (number_cell(at, "{:,.2f}"), number_cell(count, "{:.0f}")) for at, count in zip(time_T, count_T, strict=True)
    ]
    note = "Counted from visits.parquet."
    data = Table("Devices at work", ("virtual clock (s)", "devices"), thinned(rows), note, sortable=False)
    return as_figure(figure, "at-work", "Devices at work", text, data)


def _by_speed(visits: Columns, devices: Columns) -> Figure:
    """Return who takes part, by how long a visit takes the device."""
    parts = by_speed(visits, devices)
    figure, axes = small("clients by the length of their visits", "share of visits")
    x = np.arange(PARTS)
    total = {name: max(sum(getattr(part, name) for part in parts), 1) for name in ("drawn", "taken")}
    for name, offset, color, label in (("drawn", -0.2, GREY, "drawn"), ("taken", 0.2, BLUE, "results that count")):
        shares = [getattr(part, name) / total[name] for part in parts]
        axes.bar(x + offset, shares, _WIDTH, color=color, label=label, zorder=3)
    axes.axhline(1 / PARTS, color=FAINT, lw=1.0, ls=(0, (1, 2)), zorder=4)
    axes.set_xticks(x, ["fastest\nfifth", "2nd", "3rd", "4th", "slowest\nfifth"], fontsize=9)
    axes.grid(visible=False, axis="x")
    _percent(axes)
    legend_above(axes, 2)
    rows = tuple(
        (
            Cell(name, at),
            Cell(f"{format_seconds(part.least_seconds)} to {format_seconds(part.most_seconds)}", part.least_seconds),
            *(number_cell(value, "{:,.0f}") for value in part.counts),
            number_cell(part.taken / total["taken"], "{:.1%}"),
        )
        for at, (name, part) in enumerate(
            zip(("fastest fifth", "2nd", "3rd", "4th", "slowest fifth"), parts, strict=True)
        )
    )
    columns = (
        "clients",
        "a visit",
        "clients",
        "never drawable",
        "never count",
        "drawn",
        "counted",
        "late",
        "out of reach",
        "failed",
    )
    data = Table(
        "Visits by speed", (*columns, "share of those counted"), rows, "From visits.parquet and devices.parquet."
    )
    never = sum(part.never for part in parts)
    text = (
        f"Dotted: no bias. The slowest fifth of the clients has {parts[-1].taken / total['taken']:.0%} of the results that "
        f"count; {never:,} clients have none."
    )
    return as_figure(figure, "by-speed", "Who takes part, by speed", text, data)


def _by_label(visits: Columns, counts_NC: np.ndarray, names: Sequence[str]) -> Figure:
    """Return whose examples are behind the results that count."""
    seen_C, all_C = by_label(visits, counts_NC)
    order = np.argsort(-np.abs(seen_C - all_C), kind="stable")[:_LABELS]
    order = np.sort(order)
    figure, axes = small("share of examples", "", 1.1 + 0.28 * len(order))
    rows = np.arange(len(order))
    axes.hlines(rows, all_C[order], seen_C[order], color=BLUE, lw=2.2, alpha=0.5, zorder=2)
    axes.plot(all_C[order], rows, ls="", marker="|", ms=13, mew=1.8, color=GREY, label="all clients", zorder=3)
    axes.plot(seen_C[order], rows, ls="", marker="o", ms=6.5, color=BLUE, label="behind results that count", zorder=4)
    axes.set_yticks(rows, [_short(names[label]) for label in order.tolist()], fontsize=9)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    legend_above(axes, 2)
    largest = int(np.argmax(np.abs(seen_C - all_C)))
    text = (
        f"The largest difference is {names[largest]!r}: {all_C[largest]:.1%} of all examples, {seen_C[largest]:.1%} of those "
        "behind results that count, each visit counted."
    )
    cells = tuple(
        (Cell(names[at]), *(number_cell(share, "{:.2%}") for share in (all_C[at], seen_C[at], seen_C[at] - all_C[at])))
        for at in range(len(names))
    )
    columns = ("label", "all clients", "results that count", "difference")
    data = Table("Examples by label", columns, cells, "From visits.parquet and labels.parquet.")
    return as_figure(figure, "by-label", "Who takes part, by label", text, data)


def _staleness(clients: Mapping[str, np.ndarray]) -> Iterator[Figure]:
    """Yield how stale the results are that count, if it is on record."""
    stale = clients["staleness"].astype(float)[clients["status"] == "ok"]
    stale = stale[np.isfinite(stale)].astype(np.int64)
    if not len(stale):
        return
    counts = np.bincount(stale)
    figure, axes = small("server steps since the client's start", "visits")
    axes.bar(np.arange(len(counts)), counts, 0.85, color=BLUE, zorder=3)
    axes.grid(visible=False, axis="x")
    whole_numbers(axes, 8)
    text = f"Mean {stale.mean():.2f}, median {np.median(stale):.0f}, most {stale.max()}; 0 is a result from the newest state."
    rows = tuple(
        (number_cell(at, "{:.0f}"), number_cell(count, "{:,.0f}"), number_cell(count / len(stale), "{:.1%}"))
        for at, count in enumerate(counts.tolist())
    )
    data = Table("Staleness", ("staleness", "visits", "share"), rows, "From clients.parquet.")
    yield as_figure(figure, "staleness", "Staleness of the results", text, data)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
