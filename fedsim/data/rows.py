"""Open a data file as a table, by its extension or the config. Files are parsed; nothing in them is executed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from fedsim.core.errors import DataError, shown
from fedsim.data.arrow_rows import arrow_rows, parquet_rows
from fedsim.data.clients_json import clients_rows, read_clients
from fedsim.data.columns import Wanted
from fedsim.data.delimited import csv_rows, first_cells, tsv_rows
from fedsim.data.examples import NAMES_COLUMNS, NumberedRows, Problem, Table
from fedsim.data.layouts import UNKNOWN, Columns
from fedsim.data.leaf import leaf_rows, read_leaf
from fedsim.data.lines import is_utf8
from fedsim.data.text_rows import TREC_COLUMNS, is_json_array, json_array_rows, json_rows, line_rows, trec_rows

Kind = Literal["json", "csv", "tsv", "trec", "lines", "parquet", "arrow"]

EXTENSIONS: dict[str, Kind] = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".label": "trec",
    ".label.gz": "trec",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File format by extension."""
READABLE = f"{', '.join(ending for ending in EXTENSIONS if not ending.endswith('.gz'))}, text also as .gz"
"""The same for messages."""
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_QUOTED = ",;"
"""Delimiters with which files of other extensions use CSV quoting."""
_NO_TEXT = (
    ".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".h5", ".safetensors", ".zip", ".tar", ".tgz", ".bz2", ".xz",
    ".zst", ".7z", ".xls", ".xlsx", ".pdf", ".db", ".sqlite",
)  # fmt: skip
_PUBLISHED = "latin-1"
_LOOKED_AT = 100
"""Number of first rows searched for JSON field names."""


@dataclass(frozen=True)
class OpenedFile:
    """A file opened for reading rows."""

    path: Path
    kind: Kind
    table: Table
    how: tuple[str, ...] = ()
    """Notes for the user on what a layout added."""


def extension(name: str) -> str | None:
    """Return the known extension of a file name, or None."""
    return max((ext for ext in EXTENSIONS if name.lower().endswith(ext)), key=len, default=None)


def open_table(path: Path, wanted: Wanted, *, label: str | None = None, known_tsv: bool = False) -> OpenedFile:
    """Return the rows of a data file.

    Parameters
    ----------
    wanted
        Columns wanted from its rows.
    label
        The label of all its rows, if its name determines it.
    known_tsv
        Whether a layout says it is TSV, whatever its extension.

    Raises
    ------
    DataError
        At once for an unknown format or a missing column; while rows are read, if the file itself is unreadable.
    """
    kind = _kind(path, wanted, label, known_tsv)
    with _file_errors(path):
        if kind in ("parquet", "arrow"):
            opened = _open_arrow(path, kind, wanted, label)
        elif kind in ("csv", "tsv"):
            opened = _open_delimited(path, kind, wanted, label)
        elif kind == "json":
            opened = _open_json(path, wanted, label)
        else:
            opened = _open_lines(path, kind, wanted, label)
    return opened if label is None else _labelled(opened, wanted.task.label_field, label)


def _kind(path: Path, wanted: Wanted, label: str | None, known_tsv: bool) -> Kind:
    ending = extension(path.name)
    if ending is not None:
        return EXTENSIONS[ending]
    name = path.name.lower().removesuffix(".gz")
    plain = not name.endswith(_NO_TEXT)
    if plain and known_tsv:
        return "tsv"
    if plain and wanted.config.delimiter is not None:
        return "csv" if wanted.config.delimiter in _QUOTED else "tsv"
    if plain and label is not None:
        if len(wanted.task.fields) == 1:
            return "lines"
        raise DataError(
            f"{path}: each line is one text, but task {wanted.task.name} has {len(wanted.task.fields)} fields; set "
            "data.delimiter"
        )
    hint = "; set data.delimiter for text with columns, data.label_of_file for one text per line" if plain else ""
    raise DataError(f"{path}: unknown extension {path.suffix or '(none)'!r}; readable are {READABLE}{hint}")


def _open_arrow(path: Path, kind: Kind, wanted: Wanted, label: str | None) -> OpenedFile:
    names, rows = (parquet_rows if kind == "parquet" else arrow_rows)(path)
    columns = wanted.columns(str(path), names, numbered=False, fixed=True, label=label is None)
    return OpenedFile(path, kind, Table(str(path), _guarded(path, rows), "row", columns, NAMES_COLUMNS))


def _open_delimited(path: Path, kind: Kind, wanted: Wanted, label: str | None) -> OpenedFile:
    config, how = wanted.config, []
    quotes = kind == "csv"
    delimiter = config.delimiter or _DELIMITERS[kind]
    cells = first_cells(path, delimiter, quotes, config.encoding)
    if not cells and config.encoding is None:
        cells = first_cells(path, delimiter, quotes, _PUBLISHED)
    names = wanted.names_without_header(cells) if label is None or config.header is False else None
    encoding = config.encoding
    if names is not None:
        how.append(f"without header, columns {', '.join(names)}")
        if wanted.layout.headerless is not None:
            encoding = _encoding_of(path, wanted, how)
    columns = wanted.columns(
        str(path),
        names or [cell.strip() for cell in cells],
        numbered=names is not None,
        fixed=True,
        label=label is None,
    )
    rows = (csv_rows if quotes else tsv_rows)(path, delimiter, names, encoding)
    hint = f"{NAMES_COLUMNS}, data.header=false makes the first line a row" if names is None else NAMES_COLUMNS
    return OpenedFile(path, kind, Table(str(path), _guarded(path, rows), "line", columns, hint), tuple(how))


def _open_lines(path: Path, kind: Kind, wanted: Wanted, label: str | None) -> OpenedFile:
    how: list[str] = []
    columns: Columns = {}
    if kind == "lines":
        rows = line_rows(path, wanted.task.fields[0], _encoding_of(path, wanted, how))
    else:
        how.append("TREC's COARSE:fine text")
        rows = trec_rows(path, _encoding_of(path, wanted, how))
        columns = wanted.columns(str(path), TREC_COLUMNS, numbered=False, fixed=True, label=label is None)
    return OpenedFile(path, kind, Table(str(path), _guarded(path, rows), "line", columns, NAMES_COLUMNS), tuple(how))


def _open_json(path: Path, wanted: Wanted, label: str | None) -> OpenedFile:
    encoding, whole = wanted.config.encoding, extension(path.name) in (".json", ".json.gz")
    by_user = read_leaf(path, encoding) if whole else None
    by_client = read_clients(path, encoding) if whole and by_user is None else None
    by_line = by_user is None and by_client is None and not (whole and is_json_array(path, encoding))
    of_leaf = by_user is not None
    if by_client is not None:
        rows = clients_rows(path, by_client)
    elif of_leaf:
        rows = leaf_rows(path, by_user or {})
    else:
        rows = (json_rows if by_line else json_array_rows)(path, encoding)
    names, rows = _names_in(_guarded(path, rows))
    columns = wanted.columns(str(path), names, numbered=of_leaf, fixed=of_leaf, label=label is None)
    how = ("LEAF's JSON",) if of_leaf else ("JSON by client, the column client",) if by_client is not None else ()
    return OpenedFile(path, "json", Table(str(path), rows, "line" if by_line else "row", columns, NAMES_COLUMNS), how)


def _names_in(rows: NumberedRows) -> tuple[list[str], NumberedRows]:
    """Return the field names in the first rows, and all rows."""
    first = list(islice(rows, _LOOKED_AT))
    names: dict[str, None] = {}
    for _, row in first:
        if not isinstance(row, Problem):
            names.update(dict.fromkeys(row))
    return list(names), chain(first, rows)


def _encoding_of(path: Path, wanted: Wanted, how: list[str]) -> str | None:
    """Return the encoding of a file published in Latin-1: Latin-1, unless it is valid UTF-8."""
    if wanted.config.encoding is not None or wanted.layout is UNKNOWN or is_utf8(path):
        return wanted.config.encoding
    how.append(_PUBLISHED)
    return _PUBLISHED


def _labelled(opened: OpenedFile, field: str, label: str) -> OpenedFile:
    """Return a file whose rows all have the same label."""

    def rows() -> NumberedRows:
        for number, row in opened.table.rows:
            if not isinstance(row, Problem):
                if field in row:
                    raise DataError(
                        f"{opened.path}: has a column {shown(field)}, but data.label_of_file sets its label; drop the "
                        f"file's entry there"
                    )
                row = {**row, field: label}
            yield number, row

    table = opened.table
    return OpenedFile(opened.path, opened.kind, replace(table, rows=rows()), opened.how)


def _guarded(path: Path, rows: NumberedRows) -> NumberedRows:
    with _file_errors(path):
        yield from rows


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn errors about a whole file into one sentence."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, zlib.error) as error:  # pyarrow's file errors are OSError as well
        raise DataError(f"{path}: cannot be read: {_sentence(error)}") from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise DataError(f"{path}: is not a valid {extension(path.name) or 'text'} file: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
