"""The tables of ``fedsim scale``: times, time accounting, memory and traffic of each point."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedsim.display.report import MISSING, format_bytes, format_seconds
from fedsim.display.sheet import Sheet
from fedsim.scaling.accounting import PARTS, Efficiency, Evenness
from fedsim.scaling.summary import PointSummary, StudySummary

_POINT = ("clients", "cohort", "actors")
_BOLD = ("round", "compute")
"""Columns in bold on a terminal."""


def scaling_tables(study: StudySummary) -> RenderableType:
    """Return the tables printed at the end of a study; they fit 80 columns."""
    tables = [_table(sheet) for sheet in scaling_sheets(study)]
    if study.failures:
        for failure in study.failures:
            point = failure.point
            tables[0].add_row(f"{point.clients:,}", f"{point.cohort:,}", str(point.actors), Text("failed", style="red"))
        tables[0].caption = Text("\n".join(failure_lines(study)), style="red")
    return Group(
        *tables,
        *(Text(line) for line in (*evenness_lines(study), *prediction_lines(study))),
        *(Text(note, style="yellow") for note in study.notes),
    )


def scaling_sheets(study: StudySummary) -> list[Sheet]:
    """Return the tables of a study: times, and if any point finished, shares and needs."""
    sheets = [times_sheet(study), *([_shares(study), _needs(study)] if study.points else [])]
    if study.has_clock:
        sheets.insert(1, simulated_sheet(study))
    return [*sheets, *([_predicted(study)] if study.predictions.asked else [])]


def failure_lines(study: StudySummary) -> list[str]:
    """Return a line for each run that failed."""
    return [f"failed: {failure.point}, run {failure.repeat}: {failure.sentence}" for failure in study.failures]


def evenness_lines(study: StudySummary) -> list[str]:
    """Return how much the time of a client update differs, for each number of actors."""
    return [_evenness(each) for each in study.even]


def times_sheet(study: StudySummary) -> Sheet:
    """Return the table of round times, rates and efficiencies."""
    rounds = sorted({each.rounds for each in study.points})
    span = "-".join(str(number) for number in {rounds[0]: None, rounds[-1]: None}) if rounds else "0"
    rows = [
        (
            *_cells(each),
            format_seconds(each.seconds_start),
            format_round(each.seconds_first_round),
            format_round(each.seconds_round),
            _rate(each.client_updates_per_second),
            _efficiency(study.strong, each),
            _efficiency(study.weak, each),
        )
        for each in study.points
    ]
    columns = ("start", "round 1", "round", "updates/s", "strong", "weak")
    what = f"means over {span} server steps" if study.buffered else f"medians over {span} rounds"
    return _sheet(f"Scaling, {what}", columns, rows)


def simulated_sheet(study: StudySummary) -> Sheet:
    """Return the table of simulated times beside wall times, of points with a clock."""
    rows = [
        (
            *_cells(each),
            format_seconds(each.seconds_simulated),
            format_round(each.seconds_round),
            format_seconds(each.seconds_simulated_client_update),
            format_seconds(each.seconds_client_update),
        )
        for each in study.points
        if each.seconds_simulated is not None
    ]
    columns = ("simulated", "wall", "simulated/update", "wall/update")
    what = "server step" if study.buffered else "round"
    return _sheet(f"Simulated and wall time of a {what}, and of a client update", columns, rows)


def _shares(study: StudySummary) -> Sheet:
    names = ["evaluate" if name == "evaluation" else name for name in PARTS]
    rows = []
    for each in study.points:
        shares = each.parts.shares()
        rows.append((*_cells(each), *(f"{100 * shares[name]:.1f}" for name in PARTS)))
    return _sheet("Where the time goes, % of actors x wall time", names, rows)


def _needs(study: StudySummary) -> Sheet:
    rows = []
    for each in study.points:
        needs = (
            each.peak_driver_bytes,
            each.peak_worker_bytes,
            each.peak_server_bytes,
            each.bytes_down,
            each.bytes_up,
        )
        rows.append((*_cells(each), *map(format_bytes, needs)))
    columns = ("driver", "actor", "server", "down", "up")
    return _sheet("Peak memory of a process, and traffic of a round", columns, rows)


def _predicted(study: StudySummary) -> Sheet:
    asked = study.predictions.asked
    clock = any(each.simulated is not None or each.simulated_measured is not None for each in asked)
    rows = []
    for each in asked:
        error = MISSING if each.error is None else f"{100 * each.error:+.0f} %"
        cells = [format_round(each.seconds), _or_missing(each.measured), error]
        simulated = (format_seconds(each.simulated), format_seconds(each.simulated_measured)) if clock else ()
        rows.append((f"{each.point.clients:,}", f"{each.point.cohort:,}", str(each.point.actors), *cells, *simulated))
    columns = ("predicted", "measured", "error", *(("simulated", "on record") if clock else ()))
    return _sheet("Predicted by a cost model fitted to the other points", columns, rows)


def _or_missing(seconds: float | None) -> str:
    return MISSING if seconds is None else format_round(seconds)


def prediction_lines(study: StudySummary) -> list[str]:
    """Return the error of the cost model on measured points left out of its fit, and what is exact in predictions."""
    if not study.predictions.asked:
        return []
    errors = sorted(abs(each.error) for each in study.predictions.left_out if each.error is not None)
    if not errors:
        text = "the cost model's error is not known: too few points were measured to leave one out"
        return [text, *study.predictions.notes]
    middle = errors[len(errors) // 2]
    within = f"predicted within {100 * errors[-1]:.0f} %, half of them within {100 * middle:.0f} %"
    return [f"points left out of the fit, one by one: {within}", *study.predictions.notes]


def _sheet(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Sheet:
    every = (*_POINT, *columns)
    return Sheet(title, every, tuple(rows), (True,) * len(every))


def _evenness(each: Evenness) -> str:
    actors = f"{each.actors} actor{'s' * (each.actors > 1)}"
    least, most = 1e3 * each.least_seconds, 1e3 * each.most_seconds
    return f"a client update without evaluation, {actors}: {least:.3g} to {most:.3g} ms, a ratio of {each.ratio:.2f}"


def _table(sheet: Sheet) -> Table:
    title = sheet.title
    table = Table(title=title, min_width=len(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    table.title_style, table.header_style, table.caption_style = "bold", "dim", ""
    for name in sheet.columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(
            *(Text(cell, style="bold" if name in _BOLD else "") for name, cell in zip(sheet.columns, row, strict=True))
        )
    return table


def _cells(each: PointSummary) -> tuple[str, str, str]:
    return f"{each.point.clients:,}", f"{each.point.cohort:,}", str(each.workers)


def _efficiency(entries: Sequence[Efficiency], each: PointSummary) -> str:
    key = (each.point.clients, each.point.cohort, each.workers)
    found = [entry for entry in entries if (entry.clients, entry.cohort, entry.actors) == key]
    return f"{found[0].efficiency:.2f}" if found else MISSING


def format_round(seconds: float) -> str:
    """Format a round time with more digits than ``fedsim.display.report.format_seconds``."""
    return f"{seconds:.3f} s" if seconds < 0.995 else f"{seconds:.2f} s" if seconds < 9.95 else format_seconds(seconds)


def _rate(per_second: float) -> str:
    return f"{per_second:,.{0 if per_second >= 99.5 else 1 if per_second >= 9.95 else 2}f}"
