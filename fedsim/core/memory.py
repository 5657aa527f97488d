"""Memory of this process: how much it has had at most, and keeping what it has once had."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, up to 1 GiB, for what it allocates next.

    The C library would hand arrays of some megabytes back to the system as soon as they are freed and ask for them again a
    moment later, page by page: on a virtual machine that takes several times as long as to fill them. What is kept is part of
    the process's peak in any case. Does nothing where the C library is another than glibc.
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
    """Return the peak resident memory of this process in bytes, or None where the system does not tell.

    Resident memory counts pages that are shared with other processes, such as mapped weights, in each of them.
    """
    try:
        # Not getrusage where it can be helped: on Linux a process starts with the peak of the one that forked it.
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
