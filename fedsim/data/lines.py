"""Read lines of text files: compressed or not, in any encoding, with any line ends."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from fedsim.data.examples import Problem

BROKEN = "broken line"
"""Reason under which unreadable rows are counted."""
_UTF8 = "utf-8"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHUNK_BYTES = 1 << 20


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file to read it; one whose name ends with .gz is decompressed."""
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str | Problem]]:
    """Yield line numbers and lines, including line ends.

    Lines end at a line feed only, as text may hold other Unicode separators; in a file without any line feed they end at
    carriage returns, as old programs write them.

    Raises
    ------
    ValueError
        If the bytes are not valid in an encoding whose lines cannot be separated before decoding.
    """
    name = codecs.lookup(encoding or _UTF8).name
    with open_bytes(path) as file:
        if "\n".encode(name)[-2:] != b"\n":  # utf-16 and similar: a line feed takes more than one byte
            yield from _decoded_lines(file, name)
            return
        for number, line in enumerate(_byte_lines(file), start=1):
            try:
                yield number, line.decode("utf-8-sig" if name == _UTF8 and number == 1 else name)
            except UnicodeError as error:
                yield number, Problem(BROKEN, _undecoded(error, encoding))


def _undecoded(error: UnicodeError, encoding: str | None) -> str:
    place = ""
    if isinstance(error, UnicodeDecodeError):
        place = f" (byte {error.object[error.start]:#04x} at {error.start + 1})"
    key = "another data.encoding"
    if encoding is None:
        marked = isinstance(error, UnicodeDecodeError) and error.object.startswith(_UTF16_MARKS)
        key = f"data.encoding{'=utf-16' if marked else ', for example latin-1'}"
    return f"is not {(encoding or _UTF8).upper()} text{place}; set {key}"


def _byte_lines(file: IO[bytes]) -> Iterator[bytes]:
    first = file.readline()
    if b"\r" in first and not first.endswith(b"\n"):  # the whole file
        yield from first.splitlines(keepends=True)
        return
    if first:
        yield first
        yield from file


def _decoded_lines(file: IO[bytes], encoding: str) -> Iterator[tuple[int, str]]:
    text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    try:
        first = text.readline().removeprefix("\ufeff")
        whole = "\r" in first and not first.endswith("\n")
        if first:
            yield from enumerate(io.StringIO(first, newline="\r") if whole else (first,), start=1)
            yield from enumerate(text, start=2)
    except UnicodeError as error:
        raise ValueError(f"it is not {encoding} text ({error}); set another data.encoding") from None


def is_utf8(path: Path) -> bool:
    """Whether a whole file is UTF-8 text; also True if it cannot be read: reading its rows will report that."""
    decoder = codecs.getincrementaldecoder(_UTF8)()
    try:
        with open_bytes(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except (OSError, EOFError, zlib.error):
        pass
    return True
