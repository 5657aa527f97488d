"""Tables and commands of a study's page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.configuration.changed import value_text
from fedsim.display.page.parts import Block, Cell, Commands, Facts, Table, number_cell, text_cells
from fedsim.display.report import MISSING
from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures
from fedsim.study.outcome import StudySummary
from fedsim.study.sheets import FAILED, Sheet
from fedsim.study.words import p_value


def sheet_table(sheet: Sheet) -> Table:
    """Return a table of the study as one of the page, which can be sorted."""
    rows = tuple(
        tuple(Cell(c.cells[row].text, _sortable(c.cells[row].text, c.head), c.cells[row].bold) for c in sheet.columns)
        for row in range(len(sheet.columns[0].cells))
    )
    return Table(sheet.title, tuple(column.head for column in sheet.columns), rows)


_UNITS = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0,
}  # fmt: skip


def _sortable(text: str, head: str) -> float | None:
    """Return the number that a cell begins with, in its unit, to sort by; None for text."""
    if head in ("arm", "data set", FAILED) or text == MISSING:
        return None
    first, *rest = text.replace(",", "").split(" ")
    try:
        value = float(first.removeprefix("<") or rest[0])
    except (ValueError, IndexError):
        return {"reference": 0.0, "too": 2.0}.get(first)
    return value * _UNITS.get(rest[0], 1.0) if rest else value


def configs(study: StudyConfig) -> Iterator[Block]:
    """Yield what is the same in all runs, and the keys of arms and data sets side by side."""
    shared = [("config file", str(study.base)), *((key, value_text(value)) for key, value in study.set.items())]
    yield Facts(tuple(shared))
    for title, given in (("Keys of the arms", study.arms), ("Keys of the data sets", study.datasets)):
        keys = list(dict.fromkeys(key for held in given.values() if isinstance(held, dict) for key in held))
        files = {name: str(held) for name, held in given.items() if held is not None and not isinstance(held, dict)}
        if not keys and not files:
            continue
        columns = ("name", *(["config file"] if files else []), *keys)
        rows = tuple(
            text_cells(
                name,
                *([files.get(name, MISSING)] if files else []),
                *(value_text(held[key]) if isinstance(held, dict) and key in held else MISSING for key in keys),
            )
            for name, held in given.items()
        )
        yield Table(title, columns, rows, note=f"{MISSING}: as in the config file." if keys else "", sortable=False)


def mistakes_table(summary: StudySummary) -> Table | None:
    """Return on how many examples only one of two arms is right, by seed; None where no predictions were kept."""
    rows = tuple(
        (
            *text_cells(pair.dataset, pair.arm),
            Cell(str(seed), seed),
            number_cell(found.only_first, "{:,.0f}"),
            number_cell(found.only_second, "{:,.0f}"),
            Cell(p_value(found.p).removeprefix("= "), found.p),
        )
        for pair in summary.pairs
        for seed, found in (pair.mcnemar or {}).items()
    )
    columns = ("data set", "arm", "seed", f"only {summary.reference} is right", "only the arm is right", "p")
    return Table("Examples on which only one of two runs is right", columns, rows) if rows else None


def search_table(search: Sequence[Mapping[str, Any]], by: str = "the last metric") -> Table:
    """Return what each arm tried, the mean of what it is judged by, and what was chosen, in bold."""
    rows = []
    for choice in search:
        for trial in choice["trials"]:
            metrics = [metric for metric in trial["metrics"] if metric is not None]
            tried = ", ".join(f"{key}={value_text(value)}" for key, value in trial["values"].items())
            mean = sum(metrics) / len(metrics) if len(metrics) == len(trial["metrics"]) else None
            chosen = trial["values"] == choice["chosen"]
            names = (*text_cells(choice["dataset"], choice["arm"]), Cell(tried, strong=chosen))
            rows.append((*names, number_cell(mean, strong=chosen), Cell("yes" if chosen else "")))
    columns = ("data set", "arm", "tried", f"mean of {by}", "chosen")
    return Table("What the search tried", columns, tuple(rows))


def failed_table(summary: StudySummary) -> Table:
    """Return the runs that failed or are missing, each with its sentence."""
    rows = tuple(
        (*text_cells(cell.dataset, cell.arm), Cell(str(cell.seed), cell.seed), Cell(cell.sentence))
        for cell in summary.failed
    )
    return Table("Failed or missing runs", ("data set", "arm", "seed", "why"), rows)


def repeat(finished: Sequence[CellFigures], folder: str, commands: Sequence[str]) -> Iterator[Block]:
    """Yield the commands that ran the study and repeat a run of it, the versions, and where the runs are."""
    lines = [*commands, *([shlex.join(["fedsim", "report", folder])] if folder else [])]
    if finished:
        lines.append(shlex.join(["fedsim", "run", f"{finished[0].folder}/config.yaml", "output=runs/again"]))
    if lines:
        yield Commands(tuple(lines))
    versions = {name: str(version) for cell in finished for name, version in (cell.about.get("versions") or {}).items()}
    if versions:
        yield Facts(tuple(versions.items()))
    rows = tuple(
        (
            *text_cells(c.dataset, c.arm),
            Cell(str(c.seed), c.seed),
            number_cell(c.last),
            number_cell(c.best),
            Cell(c.folder),
        )
        for c in finished
    )
    if rows:
        yield Table("Runs", ("data set", "arm", "seed", "last", "best", "folder"), rows)
