"""A run whose results go to a URL: it works in a local folder, which a thread copies there while the run goes on.

The copy can be resumed from at any time: records go first, then a checkpoint, then its checksum, and only then older
checkpoints are removed. What fails is tried again at the next checkpoint; at the end it is tried several times, and if the
destination does not come back the local folder is kept.
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
"""Size in bytes and time of the last change in ns."""


class Sync:
    """A local folder and its copy behind a URL; a context manager, in which the folder is there.

    Parameters
    ----------
    destination
        Where copies go.
    note
        Called with sentences for the user, by the thread that calls the methods.

    Attributes
    ----------
    path, url
        The local folder, and where its copy is.
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
                f"a run whose results go to {self.url} works in a folder for temporary files, and none can be written "
                f"({error.strerror}); name another one in the environment variable TMPDIR"
            ) from None
        return self

    def fetch(self) -> None:
        """Copy the run that is there to the local folder; one that has come in part only is never copied back."""
        self._in_part = True
        for name, size in self._destination.files().items():
            path = self.path / name
            self._destination.download(name, path, size)
            self._copied[name] = _signature(path)
        self._in_part = False

    def update(self) -> None:
        """Ask for a copy of what is there now, and go on; tell of a copy that has failed since the last call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="fedsim-mirror", daemon=True)
            self._thread.start()
        failure, self._failure = self._failure, None
        if failure is not None and str(failure) != self._told:
            self._told = str(failure)
            self._note(f"warning: {failure}; the run goes on, and the next checkpoint is tried again")
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
            else:  # asked to end at once: what is there can be resumed from, unless the last copy failed
                whole = self._failure is None and self._told is None
        finally:
            if whole:
                self._folder.remove()
            else:
                self._folder.keep()
                self._note(f"{self.url} does not hold all of the run; it is kept in {self.path}")

    def _finish(self) -> None:
        """Copy what is left, with patience."""
        if self._thread is not None:
            self._thread.join()
        for pause in (*_LAST_PAUSES_SECONDS, None):
            try:
                self._copy()
                return
            except RemoteError as error:
                if pause is None:
                    raise RemoteError(
                        f"{error}; copy {self.path} there, or go on with --resume and output={self.path}"
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
        """Bring the destination to what the local folder holds, in an order that may break off anywhere."""
        there = _local_files(self.path)
        if _SUMMARY not in there:
            self._remove(_SUMMARY)  # a run that goes on is not finished
        missed = False
        for name in sorted(there, key=_order):
            if self._copied.get(name) != there[name]:
                try:
                    self._destination.upload(self.path / name, name)
                    self._copied[name] = there[name]
                except FileNotFoundError:  # an old checkpoint that made room for a new one meanwhile
                    missed = True
        # Checksums go before their checkpoints, and none goes before a newer one is there.
        for name in [] if missed else sorted(self._copied.keys() - there.keys(), key=_order, reverse=True):
            self._remove(name)

    def _remove(self, name: str) -> None:
        if name in self._copied:
            self._destination.remove(name)
            del self._copied[name]


def _local_files(folder: Path) -> dict[str, Signature]:
    """Return what is to be copied; files that are still being written have names of their own."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not (path.name.startswith(".") and path.name.endswith(".tmp")):
            with contextlib.suppress(FileNotFoundError):
                files[path.relative_to(folder).as_posix()] = _signature(path)
    return files


def _order(name: str) -> tuple[int, str]:
    """Records and configuration first, then checkpoints, oldest first, each before its checksum, the summary last."""
    if name == _SUMMARY:
        return (3, name)
    if name.startswith("checkpoints/"):
        return (2 if name.endswith(".sha256") else 1, name)
    return (0, name)


def _signature(path: Path) -> Signature:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
