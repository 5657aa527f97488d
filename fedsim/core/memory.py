"""Memory of this process and of its machine: its peak, keeping freed memory for reuse, and what is free."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, up to 1 GiB, for what it allocates next.

    By default the C library returns arrays of a few megabytes to the system as soon as they are freed and requests them again
    a moment later, page by page; on a virtual machine that takes several times as long as filling them. The kept memory is
    part of the process's peak in any case. Does nothing if the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process in bytes, or None if the system does not report it.

    Resident memory counts pages that are shared with other processes, such as mapped weights, in each of them.
    """
    try:
        # getrusage only as a fallback: on Linux a process inherits the peak of the one that forked it.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak_units = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_units if sys.platform == "darwin" else peak_units * 1024


def free_memory_bytes() -> int | None:
    """Return the memory of this machine that is free for new processes, or None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
