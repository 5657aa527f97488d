"""Tables of devices and traces: CSV and Parquet files as Arrow columns, checked without a Python object for each cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.errors import DataError, listed, shown, suggestion
from fedsim.world.traces.recorded import CLIENT, DEVICE

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """The cells of a table by column, text or values, null where empty."""

    path: Path
    columns: dict[str, pa.Array]
    place: Callable[[int], str]
    """Where a row stands in the file, in words."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def refuse(self, row: int, column: str, right: str) -> DataError:
        """Return the error for a cell that cannot be used."""
        value = shown(self.columns[column][row].as_py())
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
        numbers, wrong_row = _floats(cells)
        if wrong_row is not None:
            raise self.refuse(wrong_row, column, right)
        wrong = ~(np.isfinite(numbers) & test(numbers))
        if cells.null_count and wrong.any():
            wrong &= cells.is_valid().to_numpy(zero_copy_only=False)
        if wrong.any():
            raise self.refuse(int(np.flatnonzero(wrong)[0]), column, right)
        return numbers

    def owners(self) -> tuple[str, list[int | str], np.ndarray]:
        """Return the name of the column of ids, its ids in the order of their first rows, and which of them each row has."""
        import pyarrow as pa

        name = CLIENT if CLIENT in self.columns else DEVICE
        cells = self.columns[name]
        if cells.null_count:
            empty = ~cells.is_valid().to_numpy(zero_copy_only=False)
            raise self.refuse(int(np.flatnonzero(empty)[0]), name, "given in every row")
        if name == CLIENT:
            numbers = self.numbers(name, _is_id, "a client's number, from 0")
            cells = pa.array(numbers.astype(np.int64))
        elif not pa.types.is_string(cells.type):
            cells = pa.array([str(cell) for cell in cells.to_pylist()], pa.string())
        found = cells.dictionary_encode()
        ids: list[int | str] = found.dictionary.to_pylist()
        return name, ids, found.indices.to_numpy().astype(np.int64)


def _is_id(values: np.ndarray) -> np.ndarray:
    right: np.ndarray = (values >= 0) & (values == np.floor(values))
    return right


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


def _floats(cells: pa.Array) -> tuple[np.ndarray, int | None]:
    """Return cells as float64, NaN where empty; also the first row that holds no number, None if all do."""
    import pyarrow as pa

    try:
        return cells.cast(pa.float64()).to_numpy(zero_copy_only=False), None
    except pa.ArrowException:  # one cell is no number, or is one as Python writes it
        values = [_float(cell) for cell in cells.to_pylist()]
    wrong_row = next((row for row, value in enumerate(values) if value is None), None)
    return np.array([np.nan if value is None else value for value in values]), wrong_row


def _float(cell: Any) -> float | None:
    """Return a cell as a number, NaN if it is empty, None if it is none."""
    if cell is None:
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def _csv(path: Path) -> dict[str, pa.Array]:
    import pyarrow as pa
    import pyarrow.compute as pc

    data = path.read_bytes()
    columns = _regular(data)
    if columns is None:
        columns = {name: pa.array(cells, pa.string()) for name, cells in _read_by_rows(path, data).items()}
    for name, cells in columns.items():
        trimmed = pc.utf8_trim_whitespace(cells)
        columns[name] = pc.if_else(pc.equal(pc.binary_length(trimmed), 0), pa.scalar(None, pa.string()), trimmed)
    return columns


_IRREGULAR = (b'"', b"\n\n", b"\n\r", b"\r\r")
"""What Arrow's reader takes otherwise than the csv module, which has the sentences: quotes, and lines without any cell."""


def _regular(data: bytes) -> dict[str, pa.Array] | None:
    """Read a CSV file of several columns without quotes, as text; None for any other, and for one with a mistake."""
    import pyarrow as pa
    import pyarrow.csv

    header = data[: data.find(b"\n")]
    if b"," not in header or b"\r" in header.rstrip(b"\r") or any(each in data for each in _IRREGULAR):
        return None
    names = [name.strip() for name in header.decode("utf-8-sig", "replace").split(",")]
    text = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, null_values=[]
    )
    reading = pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False)
    parsing = pyarrow.csv.ParseOptions(quote_char=False, ignore_empty_lines=False)
    try:
        table = pyarrow.csv.read_csv(io.BytesIO(data), reading, parsing, text)
    except pa.ArrowException:
        return None
    if len(set(names)) != len(names) or not table.num_rows:
        return None
    return {name: _whole(table[name]) for name in names}


def _read_by_rows(path: Path, data: bytes) -> dict[str, Sequence[str]]:
    """Read any CSV file, and say where it is none."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
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
    return dict(zip(header, columns, strict=True))


def _parquet(path: Path) -> dict[str, pa.Array]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({str(error).splitlines()[0]})") from None
    return {name: _whole(table[name]) for name in table.column_names}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    found = column.combine_chunks()
    return found if not hasattr(found, "chunks") else found.chunk(0)


def _line(row: int) -> str:
    return f"line {row + 2}"


def _row(row: int) -> str:
    return f"row {row + 1}"
