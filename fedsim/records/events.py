"""Crash-safe text files: the event log (JSON Lines) and atomically written files."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedsim.core.errors import CheckpointError, ConfigError, ResourceError


class EventLog:
    """An append-only JSON Lines file with one writer; a partial last line left by a crash is removed on opening.

    Each event has ``event`` (its kind), ``time`` (ISO 8601, UTC) and ``seconds`` since the start of the run; the
    clock continues from the last event, so the pause before a resume does not count.

    Raises
    ------
    ConfigError
        If another process writes to the file.
    CheckpointError
        If a line other than the last is not an event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_locked(path)
        self._waiting = b""
        """Events not written yet because the system refused them."""
        try:
            _cut_torn_line(path)
            self._set_clock(_read_events(path))
        except BaseException:
            self._file.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the log is closed."""
        return self._file.closed

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one event and write it at once; if the system refuses, it is written with the next one."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"event": kind, "time": now, "seconds": round(time.monotonic() - self._start, 3)}
        taken = sorted(head.keys() & fields.keys())
        if taken:
            raise ValueError(f"event {kind!r} has a field named {taken[0]!r}, which every event already has")
        line = json.dumps(plain({**head, **fields}), ensure_ascii=False, allow_nan=False)
        # surrogateescape: a path or message with bytes that are not UTF-8 must not stop a run.
        self._waiting += f"{line}\n".encode(errors="surrogateescape")
        self._hand_over()

    def read(self) -> list[dict[str, Any]]:
        """Return all events, oldest first."""
        return [event for _, event in _read_events(self.path)]

    def sync(self) -> None:
        """Sync all events to disk, so that they survive a power loss too."""
        self._hand_over()
        os.fsync(self._file.fileno())

    def keep(self, stays: Callable[[dict[str, Any]], bool]) -> int:
        """Keep the events for which ``stays`` is true; return how many were dropped."""
        events = _read_events(self.path)
        kept = [(line, event) for line, event in events if stays(event)]
        if len(kept) < len(events):
            write_atomically(self.path, "".join(line + "\n" for line, _ in kept))
            self._file.close()
            self._file = open_locked(self.path)
        self._set_clock(kept)
        return len(events) - len(kept)

    def close(self) -> None:
        """Sync all events to disk and release the file, even on errors."""
        if not self.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def discard(self) -> None:
        """Remove an empty log and release the file; under the lock, so that no other run has started in it."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _hand_over(self) -> None:
        """Write pending events completely or not at all: a partial line followed by others could not be read."""
        status = os.fstat(self._file.fileno())
        if status.st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "it was removed during the run", str(self.path))
        size = status.st_size
        rest = memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)
            raise
        self._waiting = b""

    def _set_clock(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        self._start = time.monotonic() - (events[-1][1]["seconds"] if events else 0.0)


def plain(value: Any) -> Any:
    """Convert ``value`` for JSON: NumPy values to Python values, non-finite numbers to None.

    Raises
    ------
    TypeError
        If ``value`` holds anything but numbers, text, booleans, None, paths, mappings and sequences.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, so that neither readers nor crashes see half of it.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    try:
        with replaced(path) as file:
            file.write(text.encode("utf-8", errors="surrogateescape"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror or error}); fix this, or set output=FOLDER"
        ) from error


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the block ends, and is removed if the block raises."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # On a full disk, a partial file would take space needed for what can still be saved.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn system errors while writing to ``path`` into one sentence.

    Raises
    ------
    ResourceError
        For an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}; fix this, then continue with --resume"
        ) from error


def open_locked(path: Path) -> FileIO:
    """Open a log for appending, locked against a second writer.

    Raises
    ------
    ConfigError
        If another process has it open.
    """
    while True:
        log = path.open("ab", buffering=0)
        try:
            import fcntl

            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            raise ConfigError(
                f"{path.parent} is in use by a run that is still running; wait for it, stop it, or set output=FOLDER"
            ) from None
        except (ImportError, OSError):
            return log  # no locks on this system or file system: the user must then avoid a second writer
        if os.fstat(log.fileno()).st_nlink > 0:
            return log
        log.close()  # between the two steps its writer removed or replaced it


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    last = whole[whole[:-1].rfind(b"\n") + 1 :]
    if last and _event(last) is None:
        whole = whole[: -len(last)]
    if len(whole) < len(data):
        os.truncate(path, len(whole))


def _read_events(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each line with its event."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    events = []
    # Not splitlines: messages may hold other characters that it treats as line ends.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        event = _event(line)
        if event is None:
            raise CheckpointError(f"{path}, line {number} is not a fedsim event; fix that line or start a new run")
        events.append((line, event))
    return events


def _event(line: str | bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("seconds"), int | float) else None
