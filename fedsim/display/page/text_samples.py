"""Some responses that a run's model wrote, beside those of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.display.page.parts import Block, Cell, Sentences, Table, text_cells
from fedsim.display.report import MISSING, generated_words

_MOST_GLOBAL, _MOST_PERSONAL = 6, 4
_MOST_CHARACTERS = 400
_LEAST_SHARED = 20
"""Characters that all prompts begin with from which they are shown once."""
_BEFORE = "before any training"

Rows = Sequence[Mapping[str, Any]]


def text_samples(rows: Rows, generated: Mapping[str, Any] | None) -> tuple[Block, ...]:
    """Return what all prompts begin with, and the table of samples; nothing for a run whose model wrote nothing.

    Parameters
    ----------
    rows
        Those of ``generations.parquet``.
    generated
        Field ``generated`` of the summary, if the run is finished.
    """
    if not rows:
        return ()
    last = max(row["round"] for row in rows)
    latest = [row for row in rows if row["round"] == last]
    shown = [row for row in latest if row["client"] is None][:_MOST_GLOBAL]
    own: dict[int, Mapping[str, Any]] = {}
    for row in latest:
        if row["client"] is not None:
            own.setdefault(row["client"], row)  # one of each client, as they differ
    shown += list(own.values())[:_MOST_PERSONAL]
    shared = shared_beginning([row["prompt"] for row in rows])
    start = {row["example"]: row["text"] for row in rows if row["client"] is None and row["round"] == 0 < last}
    note = "" if not generated else f"All together: {generated_words(generated)}."
    columns = ("model", "prompt", "response of the data", *((_BEFORE,) if start else ()), "response of the model")
    cells = tuple(_cells(row, len(shared), start) for row in shown)
    table = Table(f"Responses after round {last}", columns, cells, note, sortable=False, of_texts=True)
    return (Sentences((f"All prompts begin with: {_cut(shared)}",)), table) if shared else (table,)


def shared_beginning(prompts: Sequence[str]) -> str:
    """Return what all prompts begin with, such as a system message, up to the end of a line or else of a word; empty if that is
    next to nothing, or there is one prompt alone.
    """
    if len(set(prompts)) < 2:
        return ""
    least, most = min(prompts), max(prompts)  # what these two share, all that lie between them share
    same = next((at for at, pair in enumerate(zip(least, most, strict=False)) if pair[0] != pair[1]), len(least))
    common = least[:same]
    line = common.rfind("\n") + 1
    whole = common[: line or max((space.end() for space in re.finditer(r"\s", common)), default=0)]
    return whole if len(whole.strip()) >= _LEAST_SHARED else ""


def _cells(row: Mapping[str, Any], shared: int, start: Mapping[int, str]) -> tuple[Cell, ...]:
    is_global = row["client"] is None
    before = (_cut(start.get(row["example"], MISSING)) if is_global else MISSING,) if start else ()
    who = "global" if is_global else f"of client {row['client']}"
    return text_cells(who, _cut(row["prompt"][shared:]), _cut(row["reference"]), *before, _cut(row["text"]))


def _cut(text: str) -> str:
    """Return a text in one line, its middle left out if it is long; prompts end with what is asked."""
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    half = _MOST_CHARACTERS // 2
    return words if len(words) <= _MOST_CHARACTERS else f"{words[:half].rstrip()} … {words[-half:].lstrip()}"
