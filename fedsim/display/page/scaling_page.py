"""The page of a scaling study."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import numpy as np

from fedsim import __version__
from fedsim.display.figure import drawn
from fedsim.display.page.parts import (
    Block,
    Cell,
    Commands,
    Facts,
    Figure,
    Figures,
    Key,
    Page,
    Section,
    Sentences,
    Table,
    number_cell,
)
from fedsim.display.page.render import render
from fedsim.display.page.small import as_figure, legend_above, small
from fedsim.display.page.swatches import line, patch
from fedsim.display.report import format_seconds
from fedsim.display.sheet import Sheet
from fedsim.scaling.accounting import Efficiency
from fedsim.scaling.picture import (
    PARTS,
    draw_efficiency,
    draw_rate,
    draw_shares,
    draw_simulated,
    draw_time,
    strong_key,
    time_series,
    weak_key,
)
from fedsim.scaling.summary import PointSummary, StudySummary
from fedsim.scaling.table import evenness_lines, failure_lines, format_round, prediction_lines, scaling_sheets


def scaling_page(study: StudySummary, name: str, folder: str) -> str:
    """Return the page of a scaling study as HTML.

    Parameters
    ----------
    name
        Its title.
    folder
        Its folder, as the commands name it.
    """
    page = Page(
        kind="scaling study",
        title=name,
        lead=tuple(_lead(study)),
        tiles=tuple(_tiles(study)),
        sections=tuple(_sections(study, folder)),
        foot=f"Written by fedsim {__version__}.",
    )
    return render(page)


def _lead(study: StudySummary) -> Iterator[str]:
    if not study.points:
        yield "No point has finished."
        return
    fast = max(study.points, key=lambda each: each.client_updates_per_second)
    yield (
        f"{len(study.points)} points; at most {fast.client_updates_per_second:,.4g} client updates per second, "
        f"with {fast.point}."
    )
    for kind, entries in (("Strong", study.strong), ("Weak", study.weak)):
        if compared := [entry for entry in entries if entry.efficiency != 1.0]:
            values = [entry.efficiency for entry in compared]
            yield f"{kind} scaling efficiency: {min(values):.2f} to {max(values):.2f} of the ideal."


def _tiles(study: StudySummary) -> Iterator[tuple[str, str, str]]:
    if study.points:
        rounds = [each.seconds_round for each in study.points]
        yield str(len(study.points)), "points", f"{sum(each.rounds for each in study.points)} rounds measured"
        yield format_round(min(rounds)), "fastest round", _usual(study)
        yield format_round(max(rounds)), "slowest round", _usual(study)
        if clock := [each.seconds_simulated for each in study.points if each.seconds_simulated is not None]:
            yield format_seconds(max(clock)), "longest simulated round", "mean of a point"
    if study.failures:
        yield str(len(study.failures)), "failed runs", ""


def _sections(study: StudySummary, folder: str) -> Iterator[Section]:
    if study.points:
        yield Section("time", "Round time", (_time_figures(study.points),), _READ)
        yield Section("shares", "Where the time goes", (_shares(study.points),))
    if study.strong or study.weak:
        figures = [*_efficiency(study.strong, "strong"), *_efficiency(study.weak, "weak")]
        yield Section("efficiency", "Efficiency", (Figures(tuple(figures)),))
    tables: list[Block] = [_table(sheet) for sheet in scaling_sheets(study)]
    if lines := [*evenness_lines(study), *prediction_lines(study), *study.notes]:
        tables.append(Sentences(tuple(f"{line[:1].upper()}{line[1:]}." for line in lines), bullets=True))
    if study.failures:
        tables.append(Sentences(tuple(f"{line[:1].upper()}{line[1:]}" for line in failure_lines(study)), bullets=True))
    yield Section("tables", "Tables", tuple(tables))
    versions = tuple(study.versions.items())
    again = Commands((shlex.join(["fedsim", "report", folder]),))
    config = Sentences(("Each point's config is in points/POINT/config.yaml of the folder. This page again:",))
    yield Section("versions", "Versions", (Facts(versions), config, again))


def _usual(study: StudySummary) -> str:
    return "mean of a point" if study.buffered else "median of a point"


_READ = "Small dots are single rounds, hollow points first rounds with their warm-up. Both axes are logarithmic."


@drawn
def _time_figures(points: Sequence[PointSummary]) -> Figures:
    label, series = time_series(points)
    made = []
    drawings = [
        ("round-time", "Wall time of a round", "wall time of a round", draw_time),
        ("rate", "Client updates per second", "client updates per second", draw_rate),
    ]
    has_clock = any(each.seconds_simulated is not None for each in points)
    if has_clock:
        drawings.append(("simulated-time", "Simulated time of a round", "simulated time of a round", draw_simulated))
    for key, title, ylabel, draw in drawings:
        figure, axes = small(label, ylabel)
        draw(axes, series)
        if len(series) == 1:
            legend_above(axes, 1)
        rows = tuple(
            (
                Cell(f"{at:,}", at),
                Cell(each.name or "all"),
                number_cell(point.seconds_round, "{:.4g}"),
                number_cell(point.seconds_first_round, "{:.4g}"),
                number_cell(point.client_updates_per_second, "{:.4g}"),
                *([number_cell(point.seconds_simulated, "{:.4g}")] if has_clock else []),
            )
            for each in series
            for at, point in zip(each.at, each.points, strict=True)
        )
        columns = (label, "series", "round (s)", "first round (s)", "client updates per second")
        data = Table(title, (*columns, *(["simulated round (s)"] if has_clock else [])), rows)
        made.append(as_figure(figure, key, title, f"Against {label}.", data))
    legend = [Key(each.name, line(each.style["color"], (), each.style["marker"])) for each in series if each.name]
    return Figures(tuple(made), tuple(legend))


@drawn
def _shares(points: Sequence[PointSummary]) -> Figures:
    figure, axes = small("share of actors x wall time", "", 0.8 + 0.34 * len(points))
    draw_shares(axes, points, 0.09)
    names = [f"{each.point.clients:,} / {each.point.cohort:,} / {each.workers}" for each in points]
    axes.set_yticks(np.arange(len(points)), names)
    rows = tuple(
        (Cell(str(each.point)), *(number_cell(share, "{:.1%}") for share in each.parts.shares().values()))
        for each in points
    )
    data = Table("Where the time goes", ("point", *(name for _, name in PARTS.values())), rows)
    rounds = "the only round" if all(each.first_only for each in points) else "rounds after the first"
    text = f"Actors times wall time, {rounds}; a bar per point: clients / clients of a round / actors."
    legend = tuple(Key(name, patch(color)) for color, name in PARTS.values())
    return Figures((as_figure(figure, "time-shares", "Parts of the time", text, data),), legend)


@drawn
def _efficiency(entries: Sequence[Efficiency], kind: str) -> list[Figure]:
    if not entries:
        return []
    key = strong_key if kind == "strong" else weak_key
    lines = len({key(entry) for entry in entries}) + 1
    figure, axes = small("actors", "efficiency", 2.4 + 0.17 * lines)
    draw_efficiency(axes, entries, lambda entry: key(entry).replace("\n", " "))
    legend_above(axes, 1)
    rows = tuple(
        (
            Cell(str(entry.actors), entry.actors),
            Cell(f"{entry.clients:,}", entry.clients),
            Cell(f"{entry.cohort:,}", entry.cohort),
            number_cell(entry.efficiency, "{:.2f}"),
        )
        for entry in entries
    )
    data = Table(f"{kind.capitalize()} scaling", ("actors", "clients", "clients of a round", "efficiency"), rows)
    text = "The same work with more actors." if kind == "strong" else "Work that grows with the actors."
    return [as_figure(figure, f"{kind}-scaling", f"{kind.capitalize()} scaling", text, data)]


def _table(sheet: Sheet) -> Table:
    rows = tuple(tuple(Cell(text, _number(text)) for text in row) for row in sheet.rows)
    return Table(sheet.title, sheet.columns, rows, sortable=False)


def _number(text: str) -> float | None:
    """Return a number to align by; the text stays as it is."""
    try:
        return float(text.replace(",", "").split(" ")[0])
    except ValueError:
        return None
