"""What a page is made of; texts are plain and are escaped as the page is rendered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from fedsim.display.report import MISSING

MOST_ROWS = 200
"""Rows of a table of data below a figure; more are thinned out."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    value: float | None = None
    """The number by which the table is sorted; None for text."""
    strong: bool = False
    title: str = ""
    """Shown on hover, in addition."""


@dataclass(frozen=True)
class Table:
    """A table, which scrolls in a box of its own if it is wide."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    sortable: bool = True
    of_texts: bool = False
    """Whether its cells are texts, which wrap; on a narrow screen its rows are blocks, one cell below another."""
    kind = "table"

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds numbers, which are set to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return tuple(bool(cells) and all(c.value is not None or c.text == MISSING for c in cells) for cells in columns)


@dataclass(frozen=True)
class Key:
    """An entry of a legend: the same colour, dash and marker as in the figures."""

    name: str
    svg: Markup
    series: str = ""
    """Name of the group of each figure that it stands for."""


@dataclass(frozen=True)
class Figure:
    """A picture, its title and what it shows, with its data as a table below."""

    key: str
    """Prefix of its ids, unique in the page."""
    title: str
    svg: Markup
    text: str
    """What it shows, in a sentence."""
    data: Table
    kind = "figure"


@dataclass(frozen=True)
class Figures:
    """Small multiples that wrap, with one legend for all of them."""

    figures: tuple[Figure, ...]
    legend: tuple[Key, ...] = ()
    kind = "figures"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: tuple[tuple[str, str], ...]
    kind = "facts"


@dataclass(frozen=True)
class Sentences:
    """Paragraphs, or a list."""

    lines: tuple[str, ...]
    bullets: bool = False
    kind = "sentences"


@dataclass(frozen=True)
class Commands:
    """Commands to copy."""

    lines: tuple[str, ...]
    kind = "commands"


Block = Table | Figures | Facts | Sentences | Commands


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    key: str
    title: str
    blocks: tuple[Block, ...]
    intro: str = ""


@dataclass(frozen=True)
class Page:
    """A page."""

    kind: str
    """Run, study or scaling study."""
    title: str
    lead: tuple[str, ...]
    """What it found, in plain words."""
    tiles: tuple[tuple[str, str, str], ...] = ()
    """Figures to see first: number, what it is, and a remark."""
    sections: tuple[Section, ...] = field(default=())
    foot: str = ""
    refresh_seconds: int | None = None
    """After this time a browser loads the page again; None for a page that does not change."""


def number_cell(value: float | None, form: str = "{:.4f}", strong: bool = False) -> Cell:
    """Return the cell of a number, or of one that is missing."""
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    return Cell(form.format(value), float(value), strong)


def text_cells(*texts: str) -> tuple[Cell, ...]:
    """Return cells of texts."""
    return tuple(Cell(text) for text in texts)


def thinned(rows: Sequence[tuple[Cell, ...]], most: int = MOST_ROWS) -> tuple[tuple[Cell, ...], ...]:
    """Return at most so many rows, evenly chosen, with the first and the last."""
    if len(rows) <= most:
        return tuple(rows)
    return tuple(rows[round(at * (len(rows) - 1) / (most - 1))] for at in range(most))


def thinned_note(rows: Sequence[object], where: str, most: int = MOST_ROWS) -> str:
    """Return a note on rows that were left out, and where all are; empty if there are none."""
    return f"{most} of {len(rows):,} rows; all are in {where}." if len(rows) > most else ""
