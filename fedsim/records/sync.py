"""Sync of a run to a URL: the run works in a local folder, which a background thread copies there.

The copy can be resumed at any time: records go first, then a checkpoint, then its checksum, and only then are older
checkpoints removed. A failed copy is retried at the next checkpoint and several times at the end; if the remote stays
unreachable, the local folder is kept.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fedsim.core.errors import FedsimError, ResourceError
from fedsim.records.remote import Remote, RemoteError
from fedsim.records.temporary import OwnedFolder, sweep

PREFIX = "fedsim-run-"
_LAST_PAUSES_SECONDS = (1.0, 3.0, 9.0)
_SUMMARY = "summary.json"

Signature = tuple[int, int]
"""Size in bytes and modification time in ns."""


class Sync:
    """A local folder and its remote copy; a context manager, within which the local folder exists.

    Parameters
    ----------
    destination
        The remote.
    note
        Called with messages for the user, on the thread that calls the methods.

    Attributes
    ----------
    path, url
        The local folder, and the remote's URL.
    """

    def __init__(self, destination: Remote, note: Callable[[str], None]) -> None:
        self._destination = destination
        self.url = destination.url
        self._note = note
        self._copied: dict[str, Signature] = {}
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._failure: FedsimError | None = None
        self._told: str | None = None
        self._in_part = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sync:
        try:
            sweep(PREFIX)
            self._folder = OwnedFolder(PREFIX)
            self.path = self._folder.path / "run"
            self.path.mkdir()
        except OSError as error:
            raise ResourceError(
                f"a run whose results go to {self.url} needs a writable temporary folder, and there is none "
                f"({error.strerror}); set the environment variable TMPDIR to a writable one"
            ) from None
        return self

    def fetch(self) -> None:
        """Download the remote run to the local folder; a partial download is never uploaded again."""
        self._in_part = True
        for name, size in self._destination.files().items():
            path = self.path / name
            self._destination.download(name, path, size)
            self._copied[name] = _signature(path)
        self._in_part = False

    def update(self) -> None:
        """Request a copy of the current state in the background; report a copy that failed since the last call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="fedsim-mirror", daemon=True)
            self._thread.start()
        failure, self._failure = self._failure, None
        if failure is not None and str(failure) != self._told:
            self._told = str(failure)
            self._note(f"warning: {failure}; the run continues, and the copy is retried at the next checkpoint")
        self._wanted.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._wanted.set()
        if self._in_part:
            self._folder.remove()
            return
        whole = False
        try:
            if error is None or isinstance(error, Exception):
                self._finish()
                whole = True
            else:  # asked to end at once: the remote copy can be resumed, unless the last copy failed
                whole = self._failure is None and self._told is None
        finally:
            if whole:
                self._folder.remove()
            else:
                self._folder.keep()
                self._note(f"{self.url} does not hold all of the run; it is kept in {self.path}")

    def _finish(self) -> None:
        """Copy what is left, with retries."""
        if self._thread is not None:
            self._thread.join()
        for pause in (*_LAST_PAUSES_SECONDS, None):
            try:
                self._copy()
                return
            except RemoteError as error:
                if pause is None:
                    raise RemoteError(
                        f"{error}; copy {self.path} there, or continue with --resume and output={self.path}"
                    ) from error
                time.sleep(pause)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if not self._stopped.is_set():
                try:
                    self._copy()
                    self._failure = self._told = None
                except FedsimError as error:
                    self._failure = error

    def _copy(self) -> None:
        """Bring the remote up to date with the local folder, in an order that may be interrupted anywhere."""
        there = _local_files(self.path)
        if _SUMMARY not in there:
            self._remove(_SUMMARY)  # a run that continues is not finished
        missed = False
        for name in sorted(there, key=_order):
            if self._copied.get(name) != there[name]:
                try:
                    self._destination.upload(self.path / name, name)
                    self._copied[name] = there[name]
                except FileNotFoundError:  # an old checkpoint that was removed for a new one meanwhile
                    missed = True
        # Checksums are removed before their checkpoints, and none before a newer one exists.
        for name in [] if missed else sorted(self._copied.keys() - there.keys(), key=_order, reverse=True):
            self._remove(name)

    def _remove(self, name: str) -> None:
        if name in self._copied:
            self._destination.remove(name)
            del self._copied[name]


def _local_files(folder: Path) -> dict[str, Signature]:
    """Return the files to copy; files still being written have temporary names."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not (path.name.startswith(".") and path.name.endswith(".tmp")):
            with contextlib.suppress(FileNotFoundError):
                files[path.relative_to(folder).as_posix()] = _signature(path)
    return files


def _order(name: str) -> tuple[int, str]:
    """Sort key: records and configuration first, then checkpoints, oldest first, each before its checksum; summary last."""
    if name == _SUMMARY:
        return (3, name)
    if name.startswith("checkpoints/"):
        return (2 if name.endswith(".sha256") else 1, name)
    return (0, name)


def _signature(path: Path) -> Signature:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
