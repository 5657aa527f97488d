"""The processors, memory, shared memory and GPUs of this machine, read from the system without Ray or torch."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
_GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits")
_GPU_SECONDS = 15.0


@dataclass(frozen=True)
class Gpu:
    """A GPU visible to this process."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """Resources of a machine; None where the system does not report them."""

    host: str
    cpus: int
    """Processors that the system reports."""
    cpu_limit: float | None
    """CPU limit of the container; None for no limit."""
    memory_bytes: int | None
    """Main memory, or the container's limit."""
    memory_free_bytes: int | None
    shared_bytes: int | None
    """Size of /dev/shm, where Ray keeps objects."""
    shared_free_bytes: int | None
    gpus: tuple[Gpu, ...]


def this_machine() -> Machine:
    """Return the resources of the machine that this process runs on."""
    memory, free = _memory()
    shared, shared_free = disk_bytes(SHARED_MEMORY)
    return Machine(
        socket.gethostname(), os.cpu_count() or 1, cpu_limit(), memory, free, shared, shared_free, visible_gpus()
    )


def cpu_limit(cgroup: Path = _CGROUP) -> float | None:
    """Return the CPU limit of the control group (cgroup v2, then v1); None if there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        limit = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return limit if limit > 0 else None


def _memory() -> tuple[int | None, int | None]:
    """Return total and free main memory, within the control group's limit."""
    values = _meminfo()
    total, free = values.get("MemTotal"), values.get("MemAvailable")
    bound = _number(_CGROUP / "memory.max") or _number(_CGROUP / "memory" / "memory.limit_in_bytes")
    used = _number(_CGROUP / "memory.current") or _number(_CGROUP / "memory" / "memory.usage_in_bytes")
    if total is None or bound is None or bound >= total:
        return total, free
    return bound, min(free or bound, bound - (used or 0))


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    except (OSError, ValueError, IndexError):
        return {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def disk_bytes(folder: Path) -> tuple[int | None, int | None]:
    """Return total and free space of a folder's file system; of the nearest existing parent if the folder does not exist."""
    for path in (folder, *folder.absolute().parents):
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        return usage.total, usage.free
    return None, None


def why_not_writable(folder: Path) -> str | None:
    """Return why a folder is not writable, or None if it is; tried out, since permissions alone do not tell."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi lists, restricted to ``CUDA_VISIBLE_DEVICES`` if set; none without nvidia-smi."""
    try:
        done = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = None if visible is None else [name.strip() for name in visible.split(",")]
    gpus = []
    for line in done.stdout.splitlines():
        index, uuid, name, total, free = (part.strip() for part in line.split(","))
        if chosen is None or index in chosen or any(uuid.startswith(each) for each in chosen if each):
            gpus.append(Gpu(name, _mebibytes(total), _mebibytes(free)))
    return tuple(gpus)


def _mebibytes(figure: str) -> int:
    """Convert a figure of nvidia-smi to bytes; 0 if it reports none, as for MIG instances."""
    return int(figure) * 2**20 if figure.isdecimal() else 0
