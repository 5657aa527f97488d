"""How much memory this process has had at most."""

from __future__ import annotations

import sys
from pathlib import Path


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
