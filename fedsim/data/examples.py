"""Validation of rows: those of any source become texts and class numbers, or an error that names the row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedsim.core.errors import DataError, listed, shown, suggestion
from fedsim.data.config import TaskConfig
from fedsim.data.dialogue import as_text, read_messages
from fedsim.data.tasks import LabelIndex

Row = Mapping[str, object]
"""Values of a row by column name."""


@dataclass(frozen=True)
class Unread:
    """Placeholder for a value of an unsupported type."""

    type: str
    """Type of its column, in the file format's terms."""


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used."""

    reason: str
    """Short name for counting such rows."""
    message: str
    """What is wrong with this row."""
    help: str = ""
    """Which keys would help, to go on the message with; said where the row stops a run, not where it is skipped."""


NAMES_COLUMNS = "data.columns maps column names"

NumberedRows = Iterator[tuple[int, Row | Problem]]
"""Row number from 1 (line number in a text file) and the row, or why it could not be read."""


@dataclass(frozen=True)
class Table:
    """Numbered rows of one file or other source, in order."""

    origin: str
    """The file, or the data set and its split."""
    rows: Iterable[tuple[int, Row | Problem]]
    """See :data:`NumberedRows`."""
    unit: Literal["line", "row"] = "row"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names that differ: the task's name to the rows' name."""
    hint: str = ""
    """Hint for rows that lack a field."""

    def place(self, number: int) -> str:
        """Return a row's name for errors."""
        return f"{self.origin}:{number}" if self.unit == "line" else f"{self.origin}, row {number}"


@dataclass(frozen=True)
class Examples:
    """Texts and class numbers of one split. Shape suffix: N examples."""

    texts: list[tuple[str, ...]]
    """For each example the text of each of the task's fields: empty where a row lacks an optional one, and of a dialogue its
    messages as JSON."""
    labels_N: np.ndarray
    """int64 class numbers; zeros for a task of responses without labels."""
    columns: dict[str, list[object]] = field(default_factory=dict)
    """Further kept columns by name, one value per example."""
    origin: str = ""
    """Where the examples come from."""
    skipped: int = 0
    """Number of skipped rows."""
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    """Number of skipped rows by reason."""
    first_skipped: str = ""
    """Where the first skipped row is, and what is wrong with it; empty if none was skipped."""

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
            first_skipped=self.first_skipped,
        )


@dataclass(frozen=True)
class RowCheck:
    """What a row must contain."""

    task: TaskConfig
    required: tuple[str, ...] = ()
    """Further columns in which every row needs a value: the client column."""
    kept: tuple[str, ...] = ()
    """Further columns to keep if present; None where a row lacks them."""
    on_bad_row: Literal["raise", "skip"] = "raise"


def collect(tables: Sequence[Table], check: RowCheck) -> Examples:
    """Check all rows of the tables of one split and return them as examples.

    Raises
    ------
    DataError
        At the first bad row, named by file and row, unless bad rows are skipped; or if no row is left, or no
        row has a requested column.
    """
    task, labels = check.task, LabelIndex(check.task)
    texts: list[tuple[str, ...]] = []
    classes: list[int] = []
    columns: dict[str, list[object]] = {name: [] for name in (*check.required, *check.kept)}
    seen: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    first_problem = help_with_first = ""
    for table in tables:
        called = {name: table.columns.get(name, name) for name in (*task.columns, *columns)}
        for number, row in table.rows:
            if not isinstance(row, Problem):
                seen.update(dict.fromkeys(row))
                problem = _problem(row, check, labels, called, table.hint)
                if problem is None:
                    texts.append(tuple(_text(task, name, row.get(called[name])) for name in task.fields))
                    classes.append(labels[row[called[task.label_field]]] if task.labels else 0)
                    for name, values in columns.items():
                        values.append(row.get(called[name]))
                    continue
            else:
                problem = row
            sentence = f"{table.place(number)}: {problem.message}"
            if check.on_bad_row == "raise":
                raise DataError(sentence + problem.help)
            if not skipped:
                first_problem, help_with_first = sentence, problem.help
            skipped[problem.reason] += 1
    origin = together([table.origin for table in tables])
    known = {name for table in tables for name in table.columns}
    _check_columns(origin, check, seen, known)
    if not texts:
        raise DataError(
            f"{origin}: all {skipped.total()} rows are bad, the first is {first_problem}{help_with_first}"
            if skipped
            else f"{origin}: holds no rows"
        )
    reasons = skipped.total(), dict(skipped), first_problem
    return Examples(texts, np.asarray(classes, np.int64), columns, origin, *reasons)


def together(origins: Sequence[str]) -> str:
    """Name several files: the first, and how many more."""
    return origins[0] if len(origins) == 1 else f"{origins[0]} and {len(origins) - 1} more"


def _check_columns(origin: str, check: RowCheck, seen: dict[str, None], known: set[str]) -> None:
    """Refuse a kept column that no row has; required ones are checked row by row."""
    for name in check.kept:
        if seen and name not in seen and name not in known:
            raise DataError(
                f"{origin}: no column {shown(name)} to keep{suggestion(name, seen)}; columns present: {listed(seen)}"
            )


def _problem(row: Row, check: RowCheck, labels: LabelIndex, called: Mapping[str, str], hint: str) -> Problem | None:
    """Return why a row cannot be used, or None."""
    task = check.task
    for name in (*task.columns, *check.required):
        column = called[name]
        if name in task.optional_fields and _is_empty(row.get(column)):
            continue
        if row.get(column) is None:
            return _missing(row, name, column, None if name in check.required else hint)
        value = row[column]
        if isinstance(value, Unread):
            return _unread(column, value)
        if name in check.required and (value != value or value == ""):  # pandas stores missing values as NaN
            state = "empty" if value == "" else "NaN"
            return Problem("missing field", f"partition.column {shown(name)} is missing (it is {state})")
    for name in check.kept:
        if isinstance(value := row.get(called[name]), Unread):
            return _unread(called[name], value)
    for name in task.fields:
        value = row.get(called[name])
        if name in task.optional_fields and _is_empty(value):
            continue
        if task.of_responses and (number := _number_as_text(value)) is not None:
            value = number
        problem = _dialogue_problem(name, value) if task.dialogue else _text_problem(name, value)
        if problem is not None:
            return problem
    if not task.labels:
        return None
    value = row[called[task.label_field]]
    if value not in labels:
        known = listed(repr(label) for label in task.labels)
        return Problem(
            "unknown label",
            f"unknown label {shown(value)}; labels of task {task.name} are {known}",
            "; data.columns tells which column is the label, data.on_bad_row=skip leaves such rows out",
        )
    return None


def _is_empty(value: object) -> bool:
    """Whether a field has no text: null, NaN (as pandas stores missing values), or white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _text(task: TaskConfig, name: str, value: object) -> str:
    """Return a checked field as text."""
    if task.dialogue:
        messages = read_messages(value)
        assert not isinstance(messages, str)
        return as_text(messages)
    if name in task.optional_fields and _is_empty(value):
        return ""
    return (_number_as_text(value) if task.of_responses else None) or str(value)


def _number_as_text(value: object) -> str | None:
    """Return a number or boolean as labels are written, since answers are often numbers; None for anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() else str(value)) if math.isfinite(value) else None
    return str(value) if isinstance(value, int) else None


def _dialogue_problem(name: str, value: object) -> Problem | None:
    messages = read_messages(value)
    return Problem("no dialogue", f"field {shown(name)} {messages}") if isinstance(messages, str) else None


def _unread(column: str, value: Unread) -> Problem:
    return Problem("type is not read", f"column {shown(column)} has the unsupported type {value.type}")


def _missing(row: Row, name: str, column: str, help_with_field: str | None) -> Problem:
    """Describe a missing value: of a field, with a hint, or of the client column."""
    present = listed(key if key.isprintable() else shown(key, 30) for key in row if row[key] is not None) or "none"
    hint = suggestion(column, row) if column not in row else " (it is null)"
    what = f"partition.column {shown(name)}" if help_with_field is None else f"field {shown(name)}"
    called = "" if column == name else f", column {shown(column)},"
    key = f"; {help_with_field}" if help_with_field and column not in row else ""
    return Problem("missing field", f"{what}{called} is missing{hint}; fields present: {present}", key)


def _as_messages(value: object) -> str:
    """Return what would read a list of messages; empty for anything else."""
    named = "; data.task.dialogue=true (with chat and no template) reads messages"
    return named if isinstance(value, list) and value and not isinstance(read_messages(value), str) else ""


def _text_problem(name: str, text: object) -> Problem | None:
    if not isinstance(text, str):
        return Problem(
            "text is not a string",
            f"field {shown(name)} is not text but {type(text).__name__} {shown(text, 40)}{_as_messages(text)}",
        )
    if not text.strip():
        return Problem("empty text", f"field {shown(name)} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Problem(
            "text is not Unicode", f"field {shown(name)} holds half of a surrogate pair, which is not a character"
        )
    return None
