"""Other text files: JSON Lines, JSON arrays, one text per line, and TREC's ``COARSE:fine text``."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from fedsim.core.errors import DataError
from fedsim.data.examples import NumberedRows, Problem, Row
from fedsim.data.lines import BROKEN, lines, open_bytes


def json_rows(path: Path, encoding: str | None) -> NumberedRows:
    """Yield the rows of a JSON Lines file."""
    for number, line in lines(path, encoding):
        if isinstance(line, Problem):
            yield number, line
        elif line.strip():
            yield number, _json_row(line.rstrip())


def is_json_array(path: Path, encoding: str | None) -> bool:
    """Whether a file is one JSON array of rows instead of one row per line."""
    try:
        with open_bytes(path) as file:
            head = file.read(4096).decode(encoding or "utf-8", errors="ignore")
    except (OSError, EOFError, zlib.error, UnicodeError):
        return False  # reading the rows will report the error
    return head.removeprefix("\ufeff").lstrip()[:1] == "["


def json_array_rows(path: Path, encoding: str | None) -> NumberedRows:
    """Yield the rows of a file with one JSON array."""
    for number, value in enumerate(read_json(path, encoding), start=1):
        yield number, _as_row(value)


def read_json(path: Path, encoding: str | None) -> Any:
    """Parse a whole file as JSON.

    Raises
    ------
    DataError
        If it is not valid JSON.
    """
    with open_bytes(path) as file:
        content = file.read()
    try:
        return json.loads(content if encoding is None else content.decode(encoding).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: is not valid JSON: {sentence}") from error


def read_json_with_head(path: Path, encoding: str | None, head: re.Pattern[bytes]) -> Any:
    """Parse a whole file as JSON if its first bytes match ``head``; None if they do not, or it cannot be read.

    Reading the rows as JSON Lines will then report the error.
    """
    try:
        with open_bytes(path) as file:
            if head.match(file.read(4096).removeprefix(b"\xef\xbb\xbf")) is None:
                return None
        return read_json(path, encoding)
    except (OSError, EOFError, zlib.error, DataError):
        return None


def _json_row(line: str) -> Row | Problem:
    try:
        return _as_row(json.loads(line))
    except json.JSONDecodeError as error:
        return Problem(BROKEN, f"is not valid JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Problem(BROKEN, f"is not valid JSON ({(str(error).strip() or type(error).__name__).splitlines()[0]})")


def _as_row(value: Any) -> Row | Problem:
    if isinstance(value, dict):
        return value
    return Problem(BROKEN, f"is not a JSON object with fields but {type(value).__name__}")


def line_rows(path: Path, name: str, encoding: str | None) -> NumberedRows:
    """Yield one row per non-blank line, with the text in column ``name``."""
    for number, line in lines(path, encoding):
        if isinstance(line, Problem):
            yield number, line
        elif line.strip():
            yield number, {name: line.strip()}


TREC_COLUMNS = ("label", "fine_label", "text")
"""Columns of :func:`trec_rows`."""


def trec_rows(path: Path, encoding: str | None) -> NumberedRows:
    """Yield the rows of a TREC question file, whose lines are ``COARSE:fine text``."""
    for number, line in lines(path, encoding):
        if isinstance(line, Problem):
            yield number, line
        elif line.strip():
            fine, _, text = line.strip().partition(" ")
            label, colon, _ = fine.partition(":")
            row = dict(zip(TREC_COLUMNS, (label, fine, text), strict=True))
            yield number, row if colon else Problem(BROKEN, "does not begin with COARSE:fine, as TREC's questions do")
