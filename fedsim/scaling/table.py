"""The tables of ``fedsim scale``: times, time accounting, memory and traffic of each point."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedsim.display.report import MISSING, format_bytes, format_seconds
from fedsim.scaling.accounting import PARTS, Efficiency, Evenness
from fedsim.scaling.summary import PointSummary, StudySummary


def scaling_tables(study: StudySummary) -> RenderableType:
    """Return the tables printed at the end of a study; they fit 80 columns."""
    parts: list[RenderableType] = [_times(study)]
    if study.points:
        parts += [_shares(study), _needs(study), *map(_evenness, study.even)]
    return Group(*parts, *(Text(note, style="yellow") for note in study.notes))


def _times(study: StudySummary) -> Table:
    rounds = sorted({each.rounds for each in study.points})
    span = "-".join(str(number) for number in {rounds[0]: None, rounds[-1]: None}) if rounds else "0"
    table = _table(f"Scaling, medians over {span} rounds", ("start", "round 1", "round", "updates/s", "strong", "weak"))
    for each in study.points:
        table.add_row(
            *_cells(each),
            format_seconds(each.seconds_start),
            format_round(each.seconds_first_round),
            Text(format_round(each.seconds_round), style="bold"),
            _rate(each.client_updates_per_second),
            _efficiency(study.strong, each),
            _efficiency(study.weak, each),
        )
    for failure in study.failures:
        point = failure.point
        table.add_row(f"{point.clients:,}", f"{point.cohort:,}", str(point.actors), Text("failed", style="red"))
    if study.failures:
        lines = [f"failed: {failure.point}, run {failure.repeat}: {failure.sentence}" for failure in study.failures]
        table.caption = Text("\n".join(lines), style="red")
    return table


def _shares(study: StudySummary) -> Table:
    names = ["evaluate" if name == "evaluation" else name for name in PARTS]
    table = _table("Where the time goes, % of actors x wall time", names)
    for each in study.points:
        shares = each.parts.shares()
        figures = (Text(f"{100 * shares[name]:.1f}", style="bold" if name == "compute" else "") for name in PARTS)
        table.add_row(*_cells(each), *figures)
    return table


def _needs(study: StudySummary) -> Table:
    table = _table("Peak memory of a process, and traffic of a round", ("driver", "actor", "server", "down", "up"))
    for each in study.points:
        needs = (
            each.peak_driver_bytes,
            each.peak_worker_bytes,
            each.peak_server_bytes,
            each.bytes_down,
            each.bytes_up,
        )
        table.add_row(*_cells(each), *map(format_bytes, needs))
    return table


def _evenness(each: Evenness) -> Text:
    actors = f"{each.actors} actor{'s' * (each.actors > 1)}"
    least, most = 1e3 * each.least_seconds, 1e3 * each.most_seconds
    return Text(
        f"a client update without evaluation, {actors}: {least:.3g} to {most:.3g} ms, a ratio of {each.ratio:.2f}"
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, min_width=len(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    table.title_style, table.header_style, table.caption_style = "bold", "dim", ""
    for name in ("clients", "cohort", "actors", *columns):
        table.add_column(name, justify="right", no_wrap=True)
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
