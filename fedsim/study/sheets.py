"""The tables of a study as rows of text: what the printed table, markdown and LaTeX have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from rich.cells import cell_len

from fedsim.display.report import MISSING
from fedsim.study import words
from fedsim.study.measures import GENERATED, MEASURES, OF_TASK, SIMULATED
from fedsim.study.outcome import ArmSummary, Estimate, StudySummary

_PROSE_WIDTH = 28
FAILED = "failed"
"""Head of the column that says why cells failed."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    head: str
    cells: tuple[Cell, ...]
    """One for each of ``StudySummary.rows``."""
    rank: int = 9
    """0 for what every table has; the larger, the sooner a narrow terminal leaves it out."""

    prose: bool = False
    """Whether it holds sentences, which may wrap."""

    @property
    def width(self) -> int:
        """Characters that it needs: of its widest cell or word of the head, or some that sentences can be read in."""
        widest = max(map(cell_len, (*self.head.split(), *(cell.text for cell in self.cells))))
        return min(widest, _PROSE_WIDTH) if self.prose else widest


@dataclass(frozen=True)
class Sheet:
    """A table: its title, and columns of equal length."""

    title: str
    columns: tuple[Column, ...]


def sheets(summary: StudySummary) -> tuple[Sheet, ...]:
    """Return the tables of a study: results, written responses, clients, costs, devices; without what nothing was measured
    for.
    """
    names = _names(summary)
    found = [Sheet("Results", (*names, *_results(summary)))]
    for title, columns in (
        ("Written responses", _written(summary)),
        ("Clients", _clients(summary)),
        ("Costs", _costs(summary)),
        ("Simulated devices", _devices(summary)),
    ):
        measured = [column for column in columns if any(cell.text != MISSING for cell in column.cells)]
        if measured:
            found.append(Sheet(title, (*names, *measured)))
    return tuple(found)


def _names(summary: StudySummary) -> tuple[Column, ...]:
    datasets = _column(summary, "data set", lambda row: row.dataset, 0)
    arms = _column(summary, "arm", lambda row: row.arm, 0)
    return (datasets, arms) if len(summary.datasets) > 1 else (arms,)


def _results(summary: StudySummary) -> list[Column]:
    columns = [_column(summary, "seeds", _seeds, 1)]
    for measure, rank in zip(OF_TASK, (0, 4, 3, 5), strict=True):
        if measure == "last" or _measured(summary, measure):
            columns.append(_metric(summary, measure, rank))
        if measure == "last":
            columns.append(_column(summary, "95 % interval", lambda row: interval(row.figures["last"]), 6))
    columns += [_text_metric(summary, measure) for measure in GENERATED if _measured(summary, measure)]
    if len(summary.arms) > 1:
        columns.append(_column(summary, f"against {summary.reference}", lambda row: against(summary, row), 2))
        columns.append(
            _column(summary, "adjusted p" if len(summary.datasets) > 1 else "p", lambda row: _p(summary, row), 2)
        )
        columns.append(_column(summary, "effect size", lambda row: _effect(summary, row), 7))
    if _measured(summary, "epsilon"):
        columns.append(_figure(summary, "epsilon", 1))
    if summary.failed:
        columns.append(replace(_column(summary, FAILED, failures, 0), prose=True))
    return columns


def _written(summary: StudySummary) -> list[Column]:
    """Return the text metrics of what the models wrote: before tuning, clients' own, and the global model's differences."""
    others = [f"{part}_{measure}" for part in ("first", "personal") for measure in GENERATED]
    found = [_figure(summary, measure, 8) for measure in others if _measured(summary, measure)]
    for measure in (measure for measure in GENERATED if _measured(summary, measure)):
        label, own = MEASURES[measure].label, partial(_interval_of, measure=measure)
        found.append(_column(summary, f"95 % interval of {label}", own, 9))
        if len(summary.arms) > 1:
            differs = partial(against, summary, measure=measure)
            found.append(_column(summary, f"{label} against {summary.reference}", differs, 7))
            found.append(_column(summary, f"p of {label}", partial(_p, summary, measure=measure), 7))
    return found


def _interval_of(row: ArmSummary, measure: str) -> str:
    return interval(row.figures[measure])


def _clients(summary: StudySummary) -> list[Column]:
    measures = ("client_median", "client_worst_decile", "client_better_share", "client_worse_share", "unseen_median")
    return [_figure(summary, measure, rank) for rank, measure in enumerate(measures, start=8)]


def _costs(summary: StudySummary) -> list[Column]:
    ranks = {"target_round": 6, "target_bytes": 6, "exchanged_parameters": 6, "seconds_wall": 7}
    reached = _column(summary, "seeds at the target", _reached, 6)
    names = (
        "target_round", "target_bytes", "target_seconds_published", "target_seconds_modelled", "target_seconds_wall",
        "trained_parameters",
        "exchanged_parameters", "stored_parameters", "bytes_up", "bytes_down", "seconds_published", "seconds_modelled",
        "seconds_wall",
    )  # fmt: skip
    return [reached, *(_figure(summary, name, ranks.get(name, 9)) for name in names)]


def _devices(summary: StudySummary) -> list[Column]:
    names = ("device_utilisation", "slowest_fifth_share", "clients_never_seen")
    return [_figure(summary, measure, 9) for measure in names]


def interval(estimate: Estimate) -> str:
    """Format the interval of an arm alone."""
    return f"{estimate.low:.3f} to {estimate.high:.3f}" if math.isfinite(estimate.low) else MISSING


def against(summary: StudySummary, row: ArmSummary, measure: str = "last") -> str:
    """Format an arm's difference from the reference, with its interval where there is one."""
    if row.is_reference:
        return "reference"
    pair = summary.pair(row.dataset, row.arm, measure)
    if pair is None or not pair.difference.n:
        return MISSING
    d = pair.difference
    ends = f" ({words.amount(d.low)} to {words.amount(d.high)})" if math.isfinite(d.low) else ""
    return f"{'+' if d.mean > 0 else ''}{words.amount(d.mean)}{ends}"


def failures(row: ArmSummary) -> str:
    """Say why cells of an arm failed, once for seeds with the same reason."""
    reasons: dict[str, list[int]] = {}
    for cell in row.failed:
        reasons.setdefault(" ".join(cell.sentence.split()), []).append(cell.seed)
    return "; ".join(f"{words.seeds_text(seeds)}: {reason}" for reason, seeds in reasons.items())


def _p(summary: StudySummary, row: ArmSummary, measure: str = "last") -> str:
    pair = summary.pair(row.dataset, row.arm, measure)
    if pair is None or not pair.difference.n:
        return MISSING
    if pair.verdict == "cannot show":
        return "too few seeds"
    return words.p_value(pair.p_holm).removeprefix("= ")


def _effect(summary: StudySummary, row: ArmSummary) -> str:
    pair = summary.pair(row.dataset, row.arm)
    return f"{pair.difference.effect:.2f}" if pair and math.isfinite(pair.difference.effect) else MISSING


def _seeds(row: ArmSummary) -> str:
    valued = row.figures["last"].n
    return str(valued) if valued == len(row.seeds) else f"{valued} of {len(row.seeds)}"


def _reached(row: ArmSummary) -> str:
    return f"{len(row.reached)} of {len(row.finished)}" if math.isfinite(row.target) and row.finished else MISSING


def _measured(summary: StudySummary, measure: str) -> bool:
    return any(measure in row.figures and row.figures[measure].n for row in summary.rows)


def _metric(summary: StudySummary, measure: str, rank: int) -> Column:
    names = {row.metric_name for row in summary.rows if row.finished}
    head = f"{MEASURES[measure].label} {names.pop() if len(names) == 1 else 'metric'}"
    cells = tuple(
        Cell(words.mean_sd(row.figures[measure]), summary.is_bold(row.dataset, row.arm, measure))
        for row in summary.rows
    )
    return Column(head, cells, rank)


def _text_metric(summary: StudySummary, measure: str) -> Column:
    cells = tuple(
        Cell(words.mean_sd(row.figures[measure], "text"), summary.is_bold(row.dataset, row.arm, measure))
        for row in summary.rows
    )
    return Column(MEASURES[measure].label, cells, 2)


def _figure(summary: StudySummary, measure: str, rank: int) -> Column:
    kind = MEASURES[measure].kind
    label = SIMULATED.get(measure) if summary.has_clock else None
    return _column(
        summary, label or MEASURES[measure].label, lambda row: words.mean_sd(row.figures[measure], kind), rank
    )


def _column(summary: StudySummary, head: str, text: Callable[[ArmSummary], str], rank: int) -> Column:
    return Column(head, tuple(Cell(text(row)) for row in summary.rows), rank)
