"""What this machine has: processors, memory, shared memory, GPUs; read from the system, without Ray and without torch."""

from __future__ import annotations

import os
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
    """A GPU that processes here may use."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """Figures of a machine; None stands for what the system does not tell."""

    host: str
    cpus: int
    """Processors that the system shows."""
    cpu_limit: float | None
    """Processors that a container may use, or None for no limit."""
    memory_bytes: int | None
    """Main memory, or a container's bound of it."""
    memory_free_bytes: int | None
    shared_bytes: int | None
    """Size of /dev/shm, where Ray keeps objects."""
    shared_free_bytes: int | None
    gpus: tuple[Gpu, ...]


def this_machine() -> Machine:
    """Return the figures of the machine that this process runs on."""
    memory, free = _memory()
    shared, shared_free = disk_bytes(SHARED_MEMORY)
    return Machine(
        socket.gethostname(), os.cpu_count() or 1, cpu_limit(), memory, free, shared, shared_free, visible_gpus()
    )


def cpu_limit(cgroup: Path = _CGROUP) -> float | None:
    """Return the processors that the control group allows (cgroup v2, then v1), or None where it sets no limit."""
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
    """Return size and free part of the main memory, within the control group's bound."""
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
    """Return size and free part of the file system of a folder; of the nearest one above, where it does not exist yet."""
    for path in (folder, *folder.absolute().parents):
        try:
            system = os.statvfs(path)
        except OSError:
            continue
        return system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
    return None, None


def why_not_writable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, or None if one can; tried, since its permissions alone do not tell."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi names, those of ``CUDA_VISIBLE_DEVICES`` where that is set; none without nvidia-smi."""
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
    """Return a figure of nvidia-smi in bytes; 0 where it gives none, as for parts of a divided GPU."""
    return int(figure) * 2**20 if figure.isdecimal() else 0
