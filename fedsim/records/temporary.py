"""Temporary folders that say whose they are, so that what a killed process has left is found and removed by a later one.

An owner holds a lock on a file in its folder for as long as it lives; the system gives the lock free when the process ends,
however it ends. A folder whose lock is free has lost its owner. Process ids would not do: they are used again, and mean nothing
in another container that shares the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is swept there
    fcntl = None  # type: ignore[assignment]

_LOCK = "owner.lock"
_REMOVE_TRIES, _REMOVE_PAUSE_SECONDS = 10, 0.2


class OwnedFolder:
    """A new temporary folder, removed by :meth:`remove`, or by :func:`sweep` once its owner is gone.

    Parameters
    ----------
    prefix
        First part of the folder's name; the process id follows.
    base
        Folder to make it in; the system's folder for temporary files if not given.

    Raises
    ------
    OSError
        If ``base`` cannot be written.
    """

    def __init__(self, prefix: str, base: Path | None = None) -> None:
        self._lock: int | None = None
        while self._lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
            # A sweep that comes between the two steps takes the folder for a lost one: then another is made.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._lock = _open_lock(self.path / _LOCK, os.O_CREAT)

    def remove(self) -> None:
        """Remove the folder with all that is in it; what processes that are just ending still write is waited for."""
        for _ in range(_REMOVE_TRIES):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(_REMOVE_PAUSE_SECONDS)
        self._release()

    def keep(self) -> None:
        """Leave the folder to the user: nobody will remove it any more."""
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(prefix: str, base: Path | None = None) -> list[Path]:
    """Remove the folders of this user whose owners are gone, and return them; two processes may do so at once."""
    if fcntl is None:
        return []
    removed = []
    for path in (base or Path(tempfile.gettempdir())).glob(f"{prefix}[0-9]*-*"):
        try:
            held = path.lstat()
            if not stat.S_ISDIR(held.st_mode) or held.st_uid != os.getuid():
                continue
            lock = _open_lock(path / _LOCK)
        except OSError:  # in use, kept for the user, or removed by another process meanwhile
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        removed.append(path)
    return removed


def _open_lock(path: Path, flags: int = 0) -> int:
    """Open and lock a file; raise OSError if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink == 0:  # swept between the two steps
            raise FileNotFoundError(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
