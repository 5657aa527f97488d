"""The table that ``fedsim compare`` prints at its end, for terminals of any width."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

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
        summary = self.summary
        found = sheets(summary)
        for place, dataset in enumerate(summary.datasets):
            rows = range(place * len(summary.arms), (place + 1) * len(summary.arms))
            title = dataset if len(summary.datasets) > 1 else summary.name
            columns = _fitting(found, options.max_width)
            if options.max_width < _NARROWEST:
                yield from _blocks(columns, rows, title)
            else:
                yield _table(summary, columns, rows, title)
            yield Group(*(Text(sentence) for sentence in _sentences(summary, dataset)), Text())
        yield from (Text(note, style="dim") for note in summary.notes)


def _fitting(found: tuple[Sheet, ...], width: int) -> list[Column]:
    """Return the columns for a width, by their ranks, in their order; the data set is in the title."""
    every = [column for n, sheet in enumerate(found) for column in sheet.columns if not n or column.rank]
    every = [column for column in every if column.head != "data set"]
    left, chosen = max(width, _NARROWEST), set[int]()
    for place, column in sorted(enumerate(every), key=lambda item: item[1].rank):
        left -= column.width + _GAP
        if left < 0 and column.rank:
            break
        chosen.add(place)
    return sorted((column for place, column in enumerate(every) if place in chosen), key=lambda column: column.prose)


def _table(summary: StudySummary, columns: list[Column], rows: range, title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title_justify="left", title_style="bold")
    table.title = Text(title)
    for column in columns:
        text = column.prose or column.head == "arm"
        least = None if column.prose else min(column.width, _LONGEST_NAME)
        table.add_column(Text(column.head), overflow="fold", justify="left" if text else "right", min_width=least)
    for row in rows:
        table.add_row(*(_text(column, row) for column in columns))
    return table


def _blocks(columns: list[Column], rows: range, title: str) -> Iterator[Text]:
    yield Text(title, style="bold")
    for row in rows:
        for column in columns:
            text = _text(column, row)
            if text:
                yield text if column.head == "arm" else Text(f"  {column.head}: ").append_text(text)


def _text(column: Column, row: int) -> Text:
    cell = column.cells[row]
    return Text(cell.text, style="bold" if cell.bold else "")


def _sentences(summary: StudySummary, dataset: str) -> Iterator[str]:
    for pair in summary.pairs:
        if pair.dataset == dataset and pair.measure == "last":
            yield f"{pair.sentence}."
    best = summary.best_arm(dataset)
    if best is not None and len(summary.arms) > 2:
        yield f"{best.sentence}."
