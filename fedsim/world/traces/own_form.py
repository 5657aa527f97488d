"""Devices and traces of our own form: a CSV or Parquet table; docs/world.md describes its columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import DataError, listed, shown, suggestion
from fedsim.world.traces.recorded import CLIENT, DEVICE, Owners, RecordedDevices, RecordedTraces, traces_of

SPEEDS = ("tokens_per_second", "downlink_megabits", "uplink_megabits", "latency_seconds", "gigabytes")
"""Columns of a table of devices, beside ``client`` or ``device``."""
FROM, UNTIL, TRACE = "available_from", "available_until", "trace_seconds"
"""Columns of a table of traces, in seconds."""


_ABOVE_0: tuple[Callable[[np.ndarray], np.ndarray], str] = (lambda values: values > 0, "a number above 0")
_RIGHT = {"latency_seconds": (lambda values: values >= 0, "a number of at least 0")}


@dataclass(frozen=True)
class Table:
    """The cells of a table by column, text or numbers, None where empty."""

    path: Path
    columns: dict[str, list[Any]]
    place: Callable[[int], str]
    """Where a row stands in the file, in words."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def refuse(self, row: int, column: str, right: str) -> DataError:
        """Return the error for a cell that cannot be used."""
        value = shown(self.columns[column][row])
        return DataError(f"{self.path}: {self.place(row)}: {column} is {value}, but must be {right}")

    def numbers(self, column: str, test: Callable[[np.ndarray], np.ndarray], right: str) -> np.ndarray:
        """Return a column as float64, NaN where it is empty or missing.

        Raises
        ------
        DataError
            If a cell is no number, or ``test`` is false for it.
        """
        if column not in self.columns:
            return np.full(self.rows, np.nan)
        cells = self.columns[column]
        try:
            numbers = np.array([np.nan if cell is None else float(cell) for cell in cells])
        except (ValueError, TypeError):
            wrong_row = next(i for i, cell in enumerate(cells) if cell is not None and not _is_number(cell))
            raise self.refuse(wrong_row, column, right) from None
        wrong = ~(np.isfinite(numbers) & test(numbers))
        if wrong.any():
            wrong &= np.array([cell is not None for cell in cells])
        if wrong.any():
            raise self.refuse(int(np.flatnonzero(wrong)[0]), column, right)
        return numbers

    def ids(self) -> tuple[str, list[int | str]]:
        """Return the name of the column of ids, and the id of each row."""
        name = CLIENT if CLIENT in self.columns else DEVICE
        cells = self.columns[name]
        if None in cells:
            raise self.refuse(cells.index(None), name, "given in every row")
        if name == DEVICE:
            return name, [str(cell) for cell in cells]
        numbers = self.numbers(
            name, lambda values: (values >= 0) & (values == np.floor(values)), "a client's number, from 0"
        )
        return name, numbers.astype(np.int64).tolist()


def read_table(path: Path, allowed: Sequence[str], needed: Sequence[str] = ()) -> Table:
    """Read a CSV or Parquet file with a column ``client`` or ``device`` and some of ``allowed``.

    Raises
    ------
    DataError
        If it cannot be read, has no rows, lacks a column or has one of another name.
    """
    columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    unknown = [name for name in columns if name not in (CLIENT, DEVICE, *allowed)]
    if unknown:
        hint = suggestion(unknown[0], (CLIENT, DEVICE, *allowed))
        raise DataError(
            f"{path}: there is no column {shown(unknown[0])}{hint}; the columns are {listed((CLIENT, DEVICE, *allowed))}"
        )
    if (CLIENT in columns) == (DEVICE in columns):
        raise DataError(
            f"{path}: a table needs one column client or device, for whose each row is; it has {listed(columns)}"
        )
    if missing := [name for name in needed if name not in columns]:
        raise DataError(f"{path}: the column {missing[0]} is missing; it has {listed(columns)}")
    table = Table(path, columns, _row if path.suffix == ".parquet" else _line)
    if not table.rows:
        raise DataError(f"{path} has no rows")
    return table


def read_devices(path: Path) -> RecordedDevices:
    """Read a table of devices, a row each."""
    table = read_table(path, SPEEDS)
    name, ids = table.ids()
    seen: dict[int | str, int] = {}
    for row, each in enumerate(ids):
        if each in seen:
            raise DataError(f"{path}: {table.place(row)}: {name} {each} was given before, {table.place(seen[each])}")
        seen[each] = row
    stated = [column for column in SPEEDS if column in table.columns]
    found = {column: table.numbers(column, *_RIGHT.get(column, _ABOVE_0)) for column in stated}
    return RecordedDevices(Owners(path, ids, name == CLIENT), found)


def read_traces(path: Path) -> RecordedTraces:
    """Read a table of traces, a row for each interval; a row without one is of a device that is never in reach."""
    table = read_table(path, (FROM, UNTIL, TRACE), (FROM, UNTIL))
    name, ids = table.ids()
    starts, ends = (
        table.numbers(column, lambda values: values >= 0, "seconds, at least 0") for column in (FROM, UNTIL)
    )
    half = np.flatnonzero(np.isnan(starts) != np.isnan(ends))
    if len(half):
        row = int(half[0])
        raise table.refuse(
            row, FROM if np.isnan(starts[row]) else UNTIL, "given, or both ends of the interval left empty"
        )
    lengths = table.numbers(TRACE, lambda values: values > 0, "seconds, above 0")
    unique = list(dict.fromkeys(ids))
    index = {each: place for place, each in enumerate(unique)}
    owner = np.array([index[each] for each in ids], dtype=np.int64)
    if np.isnan(starts).all():
        raise DataError(f"{path} has no interval in which a device is in reach")
    periods_D = np.full(len(unique), np.nan)
    periods_D[owner[~np.isnan(lengths)]] = lengths[~np.isnan(lengths)]
    other = np.flatnonzero(~np.isnan(lengths) & (lengths != periods_D[owner]))
    if len(other):
        raise table.refuse(int(other[0]), TRACE, f"the same in all rows of {name} {ids[int(other[0])]}")
    periods_D = np.where(np.isnan(periods_D), np.nanmax(ends), periods_D)
    rows = np.flatnonzero(~np.isnan(starts))
    owners = Owners(path, unique, name == CLIENT)
    return traces_of(owners, owner[rows], starts[rows], ends[rows], periods_D, lambda row: table.place(int(rows[row])))


def _csv(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error})") from None
    if not rows:
        raise DataError(f"{path} is empty")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) != len(header):
        raise DataError(f"{path}: line 1: a column is named twice: {listed(header)}")
    if set(map(len, rows)) != {len(header)}:
        number = next(number for number, row in enumerate(rows, 1) if len(row) != len(header))
        cells = len(rows[number - 1])
        raise DataError(f"{path}: line {number}: has {cells} cells, but the header has {len(header)} columns")
    columns = list(zip(*rows[1:], strict=True)) or [()] * len(header)
    return {name: [cell.strip() or None for cell in column] for name, column in zip(header, columns, strict=True)}


def _parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({str(error).splitlines()[0]})") from None
    return {name: table[name].to_pylist() for name in table.column_names}


def _line(row: int) -> str:
    return f"line {row + 2}"


def _row(row: int) -> str:
    return f"row {row + 1}"


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
