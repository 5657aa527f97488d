"""Delimited files: CSV (quotes as in RFC 4180) and TSV (quotes are ordinary characters, as in GLUE's files)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsim.core.errors import DataError, shown
from fedsim.data.examples import NumberedRows, Problem, Row
from fedsim.data.lines import BROKEN, lines

csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is too small for articles; the limit is process-wide


def csv_rows(path: Path, delimiter: str, names: Sequence[str] | None, encoding: str | None) -> NumberedRows:
    """Yield rows of a CSV file; a row's number is the line where it starts.

    Parameters
    ----------
    names
        Column names of a file without a header; None: the first line has them.
    """

    def text_lines() -> Iterator[str]:
        for number, line in lines(path, encoding):
            if isinstance(line, Problem):  # an undecodable line may open or close a quote, so later rows are uncertain
                raise DataError(f"{path}:{number}: {line.message}")
            yield line

    reader = csv.reader(text_lines(), delimiter=delimiter, strict=True)
    header = None if names is None else list(names)
    start = 1
    try:
        for cells in reader:
            if header is None:
                header = _header(path, cells)
            elif cells:
                yield start, _cells_row(header, cells, names is None)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: is not valid CSV from here on ({error})") from error


def tsv_rows(path: Path, delimiter: str, names: Sequence[str] | None, encoding: str | None) -> NumberedRows:
    """Yield rows of a TSV file, one a line. For ``names`` see :func:`csv_rows`."""
    header = None if names is None else list(names)
    for number, line in lines(path, encoding):
        if isinstance(line, Problem):
            if header is None:
                raise DataError(f"{path}:{number}: {line.message}")
            yield number, line
            continue
        cells = _tsv_cells(line, delimiter)
        if header is None:
            if "\r" in line.rstrip("\r\n"):
                raise DataError(f"{path}:{number}: mixed line ends, carriage returns and line feeds; use one kind")
            header = _header(path, cells)
        elif line.strip():
            yield number, _cells_row(header, cells, names is None)


def first_cells(path: Path, delimiter: str, quotes: bool, encoding: str | None) -> list[str]:
    """Return the cells of the first line; none if it cannot be read: reading the rows then reports why."""
    for _, line in lines(path, encoding):
        if isinstance(line, Problem):
            return []
        if not quotes:
            return _tsv_cells(line, delimiter)
        try:
            return next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return []
    return []


def _tsv_cells(line: str, delimiter: str) -> list[str]:
    return [_tsv_cell(cell) for cell in line.rstrip("\r\n").split(delimiter)]


def _tsv_cell(cell: str) -> str:
    """Undo CSV quoting of a TSV cell: quotes around it, and quotes in it doubled."""
    inner = cell[1:-1]
    doubled = '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if len(cell) > 2 and cell[0] == cell[-1] == '"' and doubled else cell


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if any("\0" in name for name in names):
        raise DataError(
            f"{path}:1: the header holds NUL characters, as UTF-16 does; set data.encoding, for example utf-16"
        )
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        hint = "; if the first line is a row, set data.header=false"
        raise DataError(f"{path}:1: the header names column {shown(repeated)} twice{hint}")
    return names


def _cells_row(header: list[str], cells: list[str], named: bool) -> Row | Problem:
    if len(cells) != len(header):
        have = f"has {len(cells)} cells where"
        many = f"the header names {len(header)} columns" if named else f"there are {len(header)} columns"
        return Problem(BROKEN, f"{have} {many}")
    return dict(zip(header, cells, strict=True))
