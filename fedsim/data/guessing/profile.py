"""Look at a data file: how it is read, and what each column holds."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fedsim.core.errors import DataError, shown
from fedsim.data.columns import Wanted
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.examples import Problem, Row, Unread
from fedsim.data.layouts import UNKNOWN
from fedsim.data.lines import is_utf8, lines
from fedsim.data.rows import EXTENSIONS, extension, open_table

_DELIMITERS = ",;\t|"
_NAMED_DELIMITERS = {"\t": "tab"}
_LINES = 50
"""Lines looked at to find the delimiter."""
_MOST_VALUES = 500_000
"""Different values of a column that are counted; with more it holds neither labels nor clients."""
_SAMPLE = 1000
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_LONG_CELL = 60
"""Characters; a cell of the first line that is longer is no column's name."""
_NO_TASK = TaskConfig(name="look", fields=("text",), labels=("0", "1"))


@dataclass
class Column:
    """What is in a column."""

    name: str
    filled: int = 0
    """Rows with a value."""
    values: Counter[str] | None = field(default_factory=Counter)
    """How often each value occurs, as text; None if there are too many different ones."""
    words: int = 0
    """Words of all values together."""
    texts: int = 0
    """Values that are text with a letter in it, and not a number or boolean."""
    numbers: int = 0
    sample: list[str] = field(default_factory=list)
    """The first values."""
    unread: str = ""
    """Type of a column that cannot be read."""

    def add(self, value: object) -> None:
        """Take in the value of a row."""
        if isinstance(value, Unread | list | dict | bytes):
            self.unread = value.type if isinstance(value, Unread) else type(value).__name__
            return
        text = _as_text(value)
        if not text.strip():
            return
        self.filled += 1
        self.words += len(text.split())
        if len(self.sample) < _SAMPLE:
            self.sample.append(text)
        if _is_number(text):
            self.numbers += 1
        elif any(map(str.isalpha, text)) and not isinstance(value, bool):
            self.texts += 1
        if self.values is not None:
            self.values[text.strip()] += 1
            if len(self.values) > _MOST_VALUES:
                self.values = None

    @property
    def different(self) -> int | None:
        """Number of different values, or None if there are too many to count."""
        return None if self.values is None else len(self.values)

    @property
    def mean_words(self) -> float:
        """Words of a value, on average."""
        return self.words / max(self.filled, 1)

    @property
    def is_text(self) -> bool:
        """Whether it holds words rather than numbers or what cannot be read."""
        return not self.unread and self.texts > self.filled / 2


@dataclass(frozen=True)
class Profile:
    """A data file: how it is read, and its columns."""

    path: Path
    columns: tuple[Column, ...]
    rows: int
    broken: int
    """Rows that cannot be read."""
    keys: dict[str, Any]
    """Keys of the section ``data`` that reading it takes."""

    def column(self, name: str, option: str) -> Column:
        """Return the column that an option names.

        Raises
        ------
        DataError
            If there is none.
        """
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            raise DataError(f"{option}: {self.path} has no column {shown(name)}; it has {self.names}")
        return found

    @property
    def names(self) -> str:
        """The columns' names, for messages."""
        return ", ".join(column.name for column in self.columns if column.name)


def look(path: Path) -> Profile:
    """Read a data file and return what is in it.

    Raises
    ------
    DataError
        If it cannot be read, or has no rows.
    """
    if not path.is_file():
        what = "is a folder; name one file in it" if path.is_dir() else "does not exist"
        raise DataError(f"--data: {path} {what}")
    if path.suffix.lower() in SPREADSHEETS:
        raise DataError(f"--data: {path} is a spreadsheet, which is not read; save its sheet as CSV, or as Parquet")
    keys = dict(_reading(path))
    wanted = Wanted(_NO_TASK, DataConfig(path=str(path.parent), **keys), UNKNOWN)
    columns: dict[str, Column] = {}
    rows = broken = 0
    for _, row in open_table(path, wanted).table.rows:
        if isinstance(row, Problem):
            broken += 1
            continue
        rows += 1
        _take_in(row, columns)
    if not rows:
        raise DataError(f"--data: {path} holds no rows")
    return Profile(path, tuple(columns.values()), rows, broken, keys)


def _take_in(row: Row, columns: dict[str, Column]) -> None:
    for name, value in row.items():
        if name not in columns:
            columns[name] = Column(name)
        columns[name].add(value)


def _as_text(value: object) -> str:
    """Return a value as the labels of a task are written."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# -- how a file is read ------------------------------------------------------------------------------------------------


def _reading(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the keys that reading a file takes, beyond what its extension says."""
    kind = EXTENSIONS.get(extension(path.name) or "")
    if kind in ("parquet", "arrow"):
        return
    encoding = _encoding(path)
    if encoding is not None:
        yield "encoding", encoding
    if kind not in ("csv", "tsv", None):
        return
    first = _first_lines(path, encoding)
    usual = {"csv": ",", "tsv": "\t"}.get(kind or "")
    tables = {delimiter: _cells(first, delimiter, quotes=kind != "tsv") for delimiter in _DELIMITERS}
    delimiter = _delimiter(tables, usual)
    if delimiter is None:
        raise DataError(
            f"--data: {path} is no table: its lines have no columns that comma, semicolon, tab or | separate"
        )
    if delimiter != usual:
        yield "delimiter", _NAMED_DELIMITERS.get(delimiter, delimiter)
    header, *rows = tables[delimiter]
    if not _is_header(header, rows):
        yield "header", False


def _encoding(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
    return None if is_utf8(path) else "latin-1"


def _first_lines(path: Path, encoding: str | None) -> list[str]:
    found = [line for _, line in islice(lines(path, encoding), _LINES) if isinstance(line, str) and line.strip()]
    if not found:
        raise DataError(f"--data: {path} is empty")
    return found


def _cells(first: Sequence[str], delimiter: str, quotes: bool) -> list[list[str]]:
    """Return the cells of the first lines, of which a cell in quotes may hold several."""
    if not quotes:
        return [line.rstrip("\r\n").split(delimiter) for line in first]
    rows: list[list[str]] = []
    with suppress(csv.Error):
        rows.extend(row for row in csv.reader(first, delimiter=delimiter) if row)
    return rows or [[line] for line in first]


def _delimiter(tables: Mapping[str, list[list[str]]], usual: str | None) -> str | None:
    """Return the delimiter with which most rows have as many cells as the first: the usual one if it does as well."""

    def alike(delimiter: str) -> float:
        first, *rest = tables[delimiter]
        return 0.0 if len(first) < 2 else sum(len(row) == len(first) for row in (first, *rest)) / (1 + len(rest))

    best = max((usual, *tables) if usual else tuple(tables), key=alike)
    return best if alike(best) > 0 else usual


def _is_header(cells: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line has names: short, different, no numbers, and not values that come again below them.

    The first may be empty, above the row numbers that pandas writes.
    """
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names) or not all(names[1:]) or any(_is_number(name) for name in names):
        return False
    if any(len(name) > _LONG_CELL for name in names):
        return False
    below = [{row[place].strip() for row in rows if place < len(row)} for place in range(len(names))]
    return not any(name and name in values for name, values in zip(names, below, strict=True))
