"""Temporary folders with an owner, so that a later process can find and remove those of a killed one.

An owner holds a lock on a file in its folder while it lives; the system releases the lock when the process ends,
however it ends. A folder whose lock is free has lost its owner. Process ids would not do: they are reused, and mean nothing
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
        Prefix of the folder's name; the process id follows.
    base
        Parent folder; the system's temporary folder if not given.

    Raises
    ------
    OSError
        If ``base`` cannot be written.
    """

    def __init__(self, prefix: str, base: Path | None = None) -> None:
        self._lock: int | None = None
        while self._lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
            # A sweep between the two steps takes the folder for an orphan: then another is created.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._lock = _open_lock(self.path / _LOCK, os.O_CREAT)

    def remove(self) -> None:
        """Remove the folder and its contents, retrying while ending processes still write to it."""
        if fcntl is None:
            self._release()  # Windows removes no file that is open
        for _ in range(_REMOVE_TRIES):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(_REMOVE_PAUSE_SECONDS)
        self._release()

    def keep(self) -> None:
        """Keep the folder for the user: it will not be removed."""
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(prefix: str, base: Path | None = None) -> list[Path]:
    """Remove this user's orphaned folders and return them; safe to run concurrently."""
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
