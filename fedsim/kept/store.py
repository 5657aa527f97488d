"""The cache's folder: one file per entry, written atomically, checked when read, the least recently used removed first.

A file is one line with the format and the SHA-256 of the rest, and the rest is a safetensors file. Nothing in it is code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedsim.display.report import format_bytes

KINDS = {
    "tokens": "tokens of a data set",
    "scores": "layer scores",
    "start": "evaluation of a start",
    "fuse": "answer of a fuse trial",
}
"""Kinds of entries, in words."""
SUFFIX = ".kept"
_NAME = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{64}}{re.escape(SUFFIX)}")
_PART = re.compile(r"\.part-\w+")
_OLD_SECONDS = 3600.0
"""After this time a file that is still being written was left by a process that is gone."""
_MAGIC = b"fedsim kept 1 "
_HEAD = len(_MAGIC) + 64 + 1
_MOST_HEADER = 2**20


@dataclass(frozen=True)
class Record:
    """What an entry holds."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An entry as a file."""

    path: Path
    kind: str
    nbytes: int
    used_at: float
    """Seconds since 1970."""

    @property
    def about(self) -> str:
        """What the entry says it was made from; nothing is checked."""
        try:
            with self.path.open("rb") as file:
                file.seek(_HEAD)
                size = int.from_bytes(file.read(8), "little")
                return str(json.loads(file.read(min(size, _MOST_HEADER)))["__metadata__"]["about"])
        except (OSError, ValueError, KeyError, TypeError):
            return "damaged"


class Damaged(Exception):  # noqa: N818 - the entry is made again
    """An entry is not what was written."""


class Store:
    """Entries in a folder, which is created when the first one is written.

    A folder that cannot be read or written costs one note, and the run goes on.

    Parameters
    ----------
    max_bytes
        Most that all entries may take.
    note
        Called with messages for the user.
    """

    def __init__(self, folder: Path, max_bytes: int, note: Callable[[str], None] = lambda text: None) -> None:
        self._folder, self._max_bytes, self._note = folder, max_bytes, note
        self._refused = False
        self.taken: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        """Entries used and written by this run, by kind."""

    def read(self, kind: str, key: str) -> Record | None:
        """Return what is kept under a key, or None; an entry that is damaged is reported and will be written anew."""
        path = self._path(kind, key)
        try:
            record = _record(path.read_bytes(), path.name)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self.damaged(kind, str(error))
            return None
        except OSError as error:
            self._refuse("read", error)
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return record

    def damaged(self, kind: str, why: str) -> None:
        """Tell the user that an entry cannot be used."""
        self._note(f"cache: the entry with the {KINDS[kind]} in {self._folder} {why}; it is made again")

    def write(self, kind: str, key: str, record: Record, about: str) -> None:
        """Keep a record, and remove the least recently used ones if all together are too large."""
        path = self._path(kind, key)
        content = _content(path.name, record, about)
        if len(content) > self._max_bytes:
            self._note(
                f"cache: the {KINDS[kind]} take {format_bytes(len(content))}, which is more than cache.max_gigabytes; they "
                "are not kept"
            )
            return
        if self._refused:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, content)
            self.written[kind] += 1
            self._make_room(path)
        except OSError as error:
            self._refuse("written", error)

    def _path(self, kind: str, key: str) -> Path:
        return self._folder / f"{kind}-{key}{SUFFIX}"

    def _make_room(self, newest: Path) -> None:
        total = 0
        # The entry just written counts first, whatever the clock of a shared folder says.
        for entry in sorted(entries(self._folder), key=lambda entry: (entry.path != newest, -entry.used_at)):
            total += entry.nbytes
            if total > self._max_bytes:
                entry.path.unlink(missing_ok=True)
        for path in leftovers(self._folder):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                    path.unlink()

    def _refuse(self, done: str, error: OSError) -> None:
        if not self._refused:
            why = error.strerror or type(error).__name__
            self._note(
                f"cache: {self._folder} cannot be {done} ({why}); the run goes on without keeping anything there"
            )
        self._refused = True


def entries(folder: Path) -> list[Entry]:
    """Return the entries in a folder; none if it does not exist.

    Raises
    ------
    OSError
        If the folder cannot be read.
    """
    found = []
    for path in _files(folder):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            status = path.stat()
            found.append(Entry(path, match[1], status.st_size, status.st_mtime))
    return found


def leftovers(folder: Path) -> list[Path]:
    """Return files that are being written, or were when their process ended."""
    return [path for path in _files(folder) if _PART.fullmatch(path.name)]


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _content(name: str, record: Record, about: str) -> bytes:
    arrays = {key: np.ascontiguousarray(array) for key, array in record.arrays.items()}
    text = save(arrays, {"name": name, "about": about, "values": json.dumps(record.values)})
    return b"%s%s\n%s" % (_MAGIC, hashlib.sha256(text).hexdigest().encode(), text)


def _record(content: bytes, name: str) -> Record:
    head, text = content[:_HEAD], content[_HEAD:]
    if head != b"%s%s\n" % (_MAGIC, hashlib.sha256(text).hexdigest().encode()):
        raise Damaged("is damaged")
    try:
        size = int.from_bytes(text[:8], "little")
        about = json.loads(text[8 : 8 + size])["__metadata__"]
        if about["name"] != name:
            raise Damaged("is another one's")
        return Record(json.loads(about["values"]), load(text))
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise Damaged("is not of this format") from None


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, or another process that writes it, sees all of it or nothing."""
    descriptor, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
