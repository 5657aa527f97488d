"""What ``fedsim init`` prints: what it guessed of a data file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fedsim.core.errors import listed

if TYPE_CHECKING:
    from fedsim.data.guessing.config_file import Guess


def guess_table(guess: Guess) -> Table:
    """Return the part of each column, and why."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title_justify="left", title_style="bold")
    columns = len(guess.profile.columns)
    table.title = (
        f"{guess.profile.path}: {guess.profile.rows:,} rows, {columns} {'column' if columns == 1 else 'columns'}"
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for row in _rows(guess):
        table.add_row(*map(Text, row))
    return table


def _rows(guess: Guess) -> Iterator[tuple[str, str, str]]:
    roles = guess.roles
    yield "text", " and ".join(column.name for column in roles.text.columns), roles.text.why
    yield "label", roles.label.columns[0].name, f"{roles.label.why}: {listed(guess.labels, 6, 20)}"
    if roles.client is not None:
        yield "clients", roles.client.columns[0].name, roles.client.why
    else:
        yield "clients", f"{guess.clients}", "drawn, each with its own mix of labels: no column names them"
    if guess.wording is not None:
        yield "words", " ".join(guess.wording.words), f"label words in the same order: {guess.wording.why}"
    if guess.validation is not None:
        yield "validation", guess.validation.name, "lies beside it"
    else:
        yield "validation", "20 %", "of the rows, held out"
    if guess.bad_rows:
        yield "left out", f"{guess.bad_rows:,}", "rows lack a text, a label or a client, or cannot be read"
