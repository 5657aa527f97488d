"""A table of some responses that a run's model wrote, beside those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.display.page.parts import Cell, Table, text_cells
from fedsim.display.report import generated_words

_MOST_GLOBAL, _MOST_PERSONAL = 6, 4
_MOST_CHARACTERS = 400


def text_samples(rows: Sequence[Mapping[str, Any]], generated: Mapping[str, Any] | None) -> Table | None:
    """Return the table; None for a run whose model wrote nothing.

    Parameters
    ----------
    rows
        Those of ``generations.parquet``.
    generated
        Field ``generated`` of the summary, if the run is finished.
    """
    if not rows:
        return None
    last = max(row["round"] for row in rows)
    latest = [row for row in rows if row["round"] == last]
    shown = [row for row in latest if row["client"] is None][:_MOST_GLOBAL]
    own: dict[int, Mapping[str, Any]] = {}
    for row in latest:
        if row["client"] is not None:
            own.setdefault(row["client"], row)  # one of each client, as they differ
    shown += list(own.values())[:_MOST_PERSONAL]
    note = "" if not generated else f"All together: {generated_words(generated)}."
    columns = ("model", "prompt", "response of the data", "response of the model")
    return Table(f"Responses after round {last}", columns, tuple(map(_cells, shown)), note, sortable=False)


def _cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    who = "global" if row["client"] is None else f"of client {row['client']}"
    return text_cells(who, *(_cut(row[name]) for name in ("prompt", "reference", "text")))


def _cut(text: str) -> str:
    """Return a text in one line, its middle left out if it is long; prompts end with what is asked."""
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    half = _MOST_CHARACTERS // 2
    return words if len(words) <= _MOST_CHARACTERS else f"{words[:half].rstrip()} … {words[-half:].lstrip()}"
