"""Following a run's ``metrics.jsonl`` while it is written, here or at a URL: each look reads what is new."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedsim.records.remote import Remote, is_url

_MOST_BYTES = 2**24
"""Bytes read at a time."""
_MARK_BYTES = 256
"""The last bytes read are read again, to see that what was read is still what is there."""


class Source(Protocol):
    """A folder whose files are read in parts."""

    def read(self, name: str, start: int, most: int) -> bytes | None:
        """Return up to ``most`` bytes of a file from ``start``; None if there is no such file."""


class LocalSource:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str, start: int, most: int) -> bytes | None:
        """Return a part of a file."""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(start)
                return file.read(most)
        except (FileNotFoundError, NotADirectoryError):
            return None


class RemoteSource:
    """A folder at a URL."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def read(self, name: str, start: int, most: int) -> bytes | None:
        """Return a part of a file."""
        return self.remote.read(name, start, most)


def source_of(place: str | Path) -> Source:
    """Return what reads the files of a folder or URL."""
    return RemoteSource(Remote(str(place))) if is_url(place) else LocalSource(Path(place))


@dataclass
class Followed:
    """What a look has found."""

    events: list[dict[str, Any]] = field(default_factory=list)
    """New events, oldest first."""
    anew: bool = False
    """Whether these are all events: the log was cut back or replaced, as when a run goes back to a checkpoint."""


class FollowedLog:
    """A log of events that grows, may end in half a line, and may be cut back.

    A run that resumes replaces its log by one that lacks the rounds after its checkpoint; the new one may be longer when
    somebody looks. So the last bytes that were read are compared with what is there now.
    """

    def __init__(self, source: Source, name: str = "metrics.jsonl") -> None:
        self._source, self._name = source, name
        self._at = 0
        """Bytes read, up to the end of a line."""
        self._mark = b""
        """The last of them."""

    def look(self) -> Followed:
        """Return the events that are new since the last look."""
        found = Followed()
        while True:
            start = self._at - len(self._mark)
            data = self._source.read(self._name, start, _MOST_BYTES + len(self._mark))
            if data is None or not data.startswith(self._mark):
                if self._at == 0:
                    return found
                self._at, self._mark, found = 0, b"", Followed(anew=True)
                continue
            new = data[len(self._mark) :]
            whole = new[: new.rfind(b"\n") + 1]
            if not whole:
                return found
            self._at += len(whole)
            self._mark = (self._mark + whole)[-_MARK_BYTES:]
            found.events += [event for line in whole.split(b"\n")[:-1] if (event := _event(line)) is not None]
            if len(new) < _MOST_BYTES:
                return found


def _event(line: bytes) -> dict[str, Any] | None:
    """Return an event; None for a line that is none, such as one that a crash has torn and a resume has cut since."""
    try:
        event = json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def is_held(path: Path) -> bool | None:
    """Return whether a process writes to a log; None where the system does not say, or where other machines may write to it.

    The system's table of locks is read rather than the lock tried: a run that starts just then would be refused.
    """
    if _may_be_shared(path):
        return None
    try:
        number = path.stat().st_ino
        table = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The inode alone: layered file systems have one device for their files and another for their locks.
    return any(word.endswith(f":{number}") for line in table.splitlines() if "FLOCK" in line for word in line.split())


_SHARED = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "beegfs", "gluster", "afs", "9p", "fuse", "virtiofs")


def _may_be_shared(path: Path) -> bool:
    """Whether a file is on a file system of several machines, whose locks the table of one does not list."""
    try:
        mounts = [line.split(" ") for line in Path("/proc/mounts").read_text(errors="replace").splitlines()]
    except OSError:
        return True
    place = path.resolve()
    inside = [(len(where), kind) for _, where, kind, *_ in mounts if place.is_relative_to(where.replace("\\040", " "))]
    return max(inside, default=(0, ""))[1].startswith(_SHARED)
