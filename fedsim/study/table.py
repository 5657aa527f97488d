"""The table that ``fedsim compare`` prints at its end, for terminals of any width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from fedsim.display.report import MISSING
from fedsim.study.measures import GENERATED
from fedsim.study.outcome import StudySummary
from fedsim.study.sheets import Column, Sheet, sheets

_NARROWEST = 56
"""Characters below which a table would break its words: each arm is a block of lines instead."""
_GAP = 3
"""Characters between columns."""
_LONGEST_NAME = 24
"""Characters of an arm's name that are not broken."""


class StudyTable:
    """The summary of a study, to be printed: one table per data set, then its sentences and the notes.

    A narrow terminal gets fewer columns, a very narrow one a block of lines for each arm. Failed cells stand below the row of
    their arm, with their sentence.
    """

    def __init__(self, summary: StudySummary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summary, width = self.summary, options.max_width
        found = sheets(summary)
        for place, dataset in enumerate(summary.datasets):
            columns = _columns(found, place * len(summary.arms), len(summary.arms))
            title = Text(dataset if len(summary.datasets) > 1 else summary.name, style="bold")
            if width < _NARROWEST:
                yield Group(title, *_blocks(_fitting(columns, _NARROWEST)))
            else:
                yield Group(title, _table(_fitting(columns, width), width))
            yield Group(*(Text(sentence) for sentence in _sentences(summary, dataset)), Text())
        yield from (Text(note, style="dim") for note in summary.notes)


def _columns(found: tuple[Sheet, ...], first: int, count: int) -> list[Column]:
    """Return all columns, cut to the rows of a data set, without those that say nothing there; sentences come last."""
    every = [column for n, sheet in enumerate(found) for column in sheet.columns if not n or column.rank]
    cut = [replace(column, cells=column.cells[first : first + count]) for column in every if column.head != "data set"]
    said = [c for c in cut if any(cell.text not in ("", MISSING) for cell in c.cells) or not (c.rank or c.prose)]
    return sorted(said, key=lambda column: column.prose)


def _fitting(columns: list[Column], width: int) -> list[Column]:
    """Return the columns that fit, by their ranks, in their order."""
    left, chosen = width, set[int]()
    for place, column in sorted(enumerate(columns), key=lambda item: item[1].rank):
        left -= _width(column) + _GAP
        if left < 0 and column.rank:
            break
        chosen.add(place)
    return [column for place, column in enumerate(columns) if place in chosen]


def _table(columns: list[Column], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    left = width - sum(_width(column) + _GAP for column in columns if not column.prose)
    for column in columns:
        right = not column.prose and column.head != "arm"
        fixed = max(left - _GAP, 1) if column.prose else _width(column)
        head = Text(column.head)
        table.add_column(head, overflow="fold", justify="right" if right else "left", width=fixed)
    for row in range(len(columns[0].cells)):
        table.add_row(*(_text(column, row) for column in columns))
    return table


def _width(column: Column) -> int:
    return min(column.width, _LONGEST_NAME) if column.head == "arm" else column.width


def _blocks(columns: list[Column]) -> Iterator[Text]:
    for row in range(len(columns[0].cells)):
        for column in columns:
            text = _text(column, row)
            if text:
                yield text if column.head == "arm" else Text(f"  {column.head}: ").append_text(text)


def _text(column: Column, row: int) -> Text:
    cell = column.cells[row]
    return Text(cell.text, style="bold" if cell.bold else "")


def _sentences(summary: StudySummary, dataset: str) -> Iterator[str]:
    for pair in summary.pairs:
        if pair.dataset == dataset and (pair.measure == "last" or pair.measure in GENERATED):
            yield f"{pair.sentence}."
    best = summary.best_arm(dataset)
    if best is not None and len(summary.arms) > 2:
        yield f"{best.sentence}."
