"""Checked examples: rows of any source become texts and class numbers, or an error that names the row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.core.errors import DataError, listed, nearest, shown
from fedsim.data.config import TaskConfig
from fedsim.data.tasks import LabelIndex

Row = Mapping[str, object]
"""Values of a row by column name."""


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used."""

    reason: str
    """Short name under which such rows are counted."""
    message: str
    """What is wrong with this row."""


@dataclass(frozen=True)
class Table:
    """Rows of one source, in order, each with its number counted from 1."""

    origin: str
    """The file, or the data set and its split."""
    rows: Iterable[tuple[int, Row | Problem]]
    """Row number (of a text file: line number) and the row, or why it could not be read."""
    unit: Literal["line", "row"] = "row"

    def place(self, number: int) -> str:
        """Return how an error names a row."""
        return f"{self.origin}:{number}" if self.unit == "line" else f"{self.origin}, row {number}"


@dataclass(frozen=True)
class Examples:
    """Texts and class numbers of one split. Shape suffix: N examples."""

    texts: list[tuple[str, ...]]
    """For each example the text of each of the task's fields."""
    labels_N: np.ndarray
    """int64 class numbers."""
    columns: dict[str, list[object]] = field(default_factory=dict)
    """Further columns that were kept, by name, one value an example."""
    origin: str = ""
    """Where the examples come from."""
    skipped: int = 0
    """Bad rows left out."""
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    """Bad rows left out, by reason."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Return the examples at ``indices``, in that order."""
        return Examples(
            texts=[self.texts[i] for i in indices],
            labels_N=self.labels_N[np.asarray(indices, dtype=np.int64)],
            columns={name: [values[i] for i in indices] for name, values in self.columns.items()},
            origin=self.origin,
            skipped=self.skipped,
            skipped_reasons=dict(self.skipped_reasons),
        )


@dataclass(frozen=True)
class RowCheck:
    """What a row must hold."""

    task: TaskConfig
    required: tuple[str, ...] = ()
    """Further columns that every row must have a value in: the one whose values are the clients."""
    kept: tuple[str, ...] = ()
    """Further columns to keep where they are, with None where a row lacks them."""
    on_bad_row: Literal["raise", "skip"] = "raise"


def collect(table: Table, check: RowCheck) -> Examples:
    """Check all rows of a table and return them as examples.

    Raises
    ------
    DataError
        At the first bad row, named by file and row, unless bad rows are to be skipped; or if no row is left, or no
        row has a column that was asked for.
    """
    task, labels = check.task, LabelIndex(check.task)
    texts: list[tuple[str, ...]] = []
    classes: list[int] = []
    columns: dict[str, list[object]] = {name: [] for name in (*check.required, *check.kept)}
    seen: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    first_problem = ""
    for number, row in table.rows:
        if not isinstance(row, Problem):
            seen.update(dict.fromkeys(row))
            problem = _problem(row, check, labels)
            if problem is None:
                texts.append(tuple(str(row[name]) for name in task.fields))
                classes.append(labels[row[task.label_field]])
                for name, values in columns.items():
                    values.append(row.get(name))
                continue
        else:
            problem = row
        sentence = f"{table.place(number)}: {problem.message}"
        if check.on_bad_row == "raise":
            raise DataError(sentence)
        first_problem = first_problem or sentence
        skipped[problem.reason] += 1
    _check_columns(table, check, seen)
    if not texts:
        raise DataError(
            f"{table.origin}: all {skipped.total()} rows are bad, the first is {first_problem}"
            if skipped
            else f"{table.origin}: holds no rows"
        )
    return Examples(texts, np.asarray(classes, np.int64), columns, table.origin, skipped.total(), dict(skipped))


def _check_columns(table: Table, check: RowCheck, seen: dict[str, None]) -> None:
    """Refuse a kept column that no row has; a required one is missed row by row."""
    for name in check.kept:
        if seen and name not in seen:
            raise DataError(
                f"{table.origin}: no column {shown(name)} to keep{nearest(name, seen)}; columns present: {listed(seen)}"
            )


def _problem(row: Row, check: RowCheck, labels: LabelIndex) -> Problem | None:
    """Return why a row cannot be used, or None."""
    task = check.task
    for name in (*task.fields, task.label_field, *check.required):
        if row.get(name) is None:
            present = listed(key for key in row if row[key] is not None) or "none"
            hint = nearest(name, row) if name not in row else " (it is null)"
            what = f"partition.column {shown(name)}" if name in check.required else f"field {shown(name)}"
            return Problem("missing field", f"{what} is missing{hint}; fields present: {present}")
    for name in task.fields:
        problem = _text_problem(name, row[name])
        if problem is not None:
            return problem
    value = row[task.label_field]
    if value not in labels:
        known = listed(repr(label) for label in task.labels)
        return Problem("unknown label", f"unknown label {shown(value)}; labels of task {task.name} are {known}")
    return None


def _text_problem(name: str, text: object) -> Problem | None:
    if not isinstance(text, str):
        return Problem(
            "text is not a string", f"field {shown(name)} is not text but {type(text).__name__} {shown(text, 40)}"
        )
    if not text.strip():
        return Problem("empty text", f"field {shown(name)} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Problem(
            "text is not Unicode", f"field {shown(name)} holds half of a surrogate pair, which is no character"
        )
    return None
