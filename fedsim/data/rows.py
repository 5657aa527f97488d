"""Readers of data files: JSON Lines, JSON, CSV, TSV, Parquet and Arrow. Files are parsed, nothing in them is run."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from fedsim.core.errors import DataError, shown
from fedsim.data.examples import Problem, Row, Table
from fedsim.data.tasks import ClassNumber

NumberedRows = Iterator[tuple[int, Row | Problem]]

_BROKEN = "broken line"


def read_table(path: Path) -> Table:
    """Return the rows of a data file; its format follows from its extension.

    Raises
    ------
    DataError
        Here if the extension is not known; while the rows are read, if the file as a whole cannot be.
    """
    reader = READERS.get(extension(path.name) or "")
    if reader is None:
        raise DataError(f"{path}: unknown extension {path.suffix or '(none)'!r}; readable are {', '.join(READERS)}")
    by_line = reader in _BY_LINE and not _is_json_array(path)
    return Table(str(path), _guarded(path, reader), "line" if by_line else "row")


def extension(name: str) -> str | None:
    """Return the known extension that a file name ends with, or None."""
    return max((ext for ext in READERS if name.lower().endswith(ext)), key=len, default=None)


def _guarded(path: Path, reader: Callable[[Path], NumberedRows]) -> NumberedRows:
    """Pass on a reader's rows; turn what can go wrong with a whole file into one sentence."""
    try:
        yield from reader(path)
    except DataError:
        raise
    except (OSError, EOFError, zlib.error) as error:  # pyarrow's file errors are OSError as well
        raise DataError(f"{path}: cannot be read: {_sentence(error)}") from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise DataError(f"{path}: is not a valid {extension(path.name)} file: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    """Yield line number and line. Lines end at a line feed only: text may hold other Unicode separators."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                yield number, Problem(_BROKEN, f"is not UTF-8 text (byte {byte:#04x} at {error.start + 1})")


def _is_json_array(path: Path) -> bool:
    """Whether a .json file holds one array of rows instead of one row a line."""
    if extension(path.name) not in (".json", ".json.gz"):
        return False
    try:
        with _open(path) as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    except (OSError, EOFError, zlib.error):
        return False  # reading the rows will say what is wrong


def _json_rows(path: Path) -> NumberedRows:
    if _is_json_array(path):
        yield from _json_array_rows(path)
        return
    for number, line in _lines(path):
        if isinstance(line, Problem):
            yield number, line
        elif line.strip():
            yield number, _json_row(line.rstrip())


def _json_array_rows(path: Path) -> NumberedRows:
    with _open(path) as file:
        try:
            values = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not valid JSON: {_sentence(error)}") from error
    for number, value in enumerate(values, start=1):
        yield number, _as_row(value)


def _json_row(line: str) -> Row | Problem:
    try:
        return _as_row(json.loads(line))
    except json.JSONDecodeError as error:
        return Problem(_BROKEN, f"is not valid JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Problem(_BROKEN, f"is not valid JSON ({_sentence(error)})")


def _as_row(value: Any) -> Row | Problem:
    if isinstance(value, dict):
        return value
    return Problem(_BROKEN, f"is not a JSON object with fields but {type(value).__name__}")


def _csv_rows(path: Path) -> NumberedRows:
    """Yield rows of a CSV file (RFC 4180, header first); a row's number is the line where it starts."""

    def text_lines() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, Problem):  # an undecoded line may open or close a quote, so no later row is certain
                raise DataError(f"{path}:{number}: {line.message}")
            yield line

    reader = csv.reader(text_lines(), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if header is None:
                header = _header(path, cells)
            elif cells:
                yield start, _cells_row(header, cells)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: is not valid CSV from here on ({error})") from error


def _tsv_rows(path: Path) -> NumberedRows:
    """Yield rows of a TSV file: one a line, quotes are ordinary characters (as in GLUE's files)."""
    header: list[str] | None = None
    for number, line in _lines(path):
        if isinstance(line, Problem):
            if header is None:
                raise DataError(f"{path}:{number}: {line.message}")
            yield number, line
            continue
        cells = [_tsv_cell(cell) for cell in line.rstrip("\r\n").split("\t")]
        if header is None:
            header = _header(path, cells)
        elif line.strip():
            yield number, _cells_row(header, cells)


def _tsv_cell(cell: str) -> str:
    """Undo what CSV writers do to a TSV cell with quotes in it: the whole quoted, each quote in it doubled."""
    inner = cell[1:-1]
    doubled = '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if len(cell) > 2 and cell[0] == cell[-1] == '"' and doubled else cell


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{path}:1: the header names column {shown(repeated)} twice")
    return names


def _cells_row(header: list[str], cells: list[str]) -> Row | Problem:
    if len(cells) != len(header):
        return Problem(_BROKEN, f"has {len(cells)} cells where the header names {len(header)} columns")
    return dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path) -> NumberedRows:
    import pyarrow.parquet as pq

    with _arrow_errors(), pq.ParquetFile(path) as file:
        yield from _batch_rows(file.schema_arrow, file.iter_batches())


def _arrow_rows(path: Path) -> NumberedRows:
    """Yield rows of an Arrow IPC file, or of an Arrow IPC stream (what ``datasets`` saves)."""
    import pyarrow as pa

    with _arrow_errors(), pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            yield from _batch_rows(file.schema, batches)
        else:
            stream = pa.ipc.open_stream(source)
            yield from _batch_rows(stream.schema, stream)


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """Turn what PyArrow raises for a damaged file, which may be nearly anything, into a ValueError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowInvalid):
        raise  # as _guarded expects them
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(_sentence(error)) from error


def _batch_rows(schema: Any, batches: Any) -> NumberedRows:
    names = _class_names(schema)
    repeated = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"it has column {shown(repeated)} twice")
    number = 0
    for batch in batches:
        batch.validate(full=True)  # a damaged file may point outside of itself, which its reader does not look at
        for row in batch.to_pylist():
            number += 1
            for column, labels in names.items():
                row[column] = ClassNumber.of(row[column], labels)
            yield number, row


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the class names of the columns that ``datasets`` marked as ``ClassLabel`` in a file's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = (json.loads(raw).get("info") or {}).get("features") or {}
        found = {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names
        }
    except (ValueError, AttributeError, KeyError, RecursionError):
        raise ValueError("its metadata 'huggingface' describe no columns as the library datasets does") from None
    for column, names in found.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"its metadata 'huggingface' name no classes for column {shown(column)}")
    return found


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": _json_rows,
    ".jsonl.gz": _json_rows,
    ".json": _json_rows,
    ".json.gz": _json_rows,
    ".csv": _csv_rows,
    ".csv.gz": _csv_rows,
    ".tsv": _tsv_rows,
    ".tsv.gz": _tsv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
"""Reader by extension."""

_BY_LINE = (_json_rows, _csv_rows, _tsv_rows)
