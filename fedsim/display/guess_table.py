"""What ``fedsim init`` prints: what it guessed of a data file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fedsim.core.errors import listed

if TYPE_CHECKING:
    from fedsim.data.guessing.config_file import Guess
    from fedsim.data.guessing.written import WrittenGuess


def guess_table(guess: Guess | WrittenGuess) -> Table:
    """Return the part of each column, and why."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title_justify="left", title_style="bold")
    columns = len(guess.profile.columns)
    table.title = (
        f"{guess.profile.path}: {guess.profile.rows:,} rows, {columns} {'column' if columns == 1 else 'columns'}"
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for row in (*_parts(guess), *_left(guess)):
        table.add_row(*map(Text, row))
    return table


def _parts(guess: Guess | WrittenGuess) -> Iterator[tuple[str, str, str]]:
    from fedsim.data.guessing.written import WrittenGuess

    if isinstance(guess, WrittenGuess):
        yield from guess.rows()
        return
    roles = guess.roles
    yield "text", " and ".join(column.name for column in roles.text.columns), roles.text.why
    yield "label", roles.label.columns[0].name, f"{roles.label.why}: {listed(guess.labels, 6, 20)}"
    if roles.client is not None:
        yield "clients", roles.client.columns[0].name, roles.client.why
    else:
        yield "clients", f"{guess.clients}", "drawn, each with its own mix of labels: no column names them"
    if guess.wording is not None:
        yield "words", " ".join(guess.wording.words), f"label words in the same order: {guess.wording.why}"


def _left(guess: Guess | WrittenGuess) -> Iterator[tuple[str, str, str]]:
    if guess.validation is not None:
        yield "validation", guess.validation.name, "lies beside it"
    else:
        yield "validation", "20 %", "of the rows, held out"
    if guess.bad_rows:
        yield "left out", f"{guess.bad_rows:,}", f"rows that a run cannot use; the first: {guess.first_bad}"
