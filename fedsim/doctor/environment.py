"""Checks of this machine and this process's environment; none needs Ray."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fedsim.display.report import format_bytes
from fedsim.doctor.findings import Finding, ok, problem, warning
from fedsim.executors.cluster.local_cluster import base_folder
from fedsim.planning.machine import Machine, disk_bytes, why_not_writable

_MANY_FILES = 65_536
"""Open files per process that Ray asks for."""
_LITTLE_DISK, _SCARCE_DISK = 2 * 10**9, 200 * 10**6
_FULL_DISK_SHARE = 0.05
"""Ray stores no more objects on a disk with a smaller free fraction (ray-project/ray#36959)."""
_LITTLE_SHARED = 256 * 2**20
_TOKEN_FILE = Path("~/.ray/auth_token")


def environment_findings(machine: Machine, output: Path | None, *, starts_ray: bool = True) -> list[Finding]:
    """Return the findings about this machine and this process.

    Parameters
    ----------
    output
        Folder for the results, or ``runs``; None for a URL, whose run works in a temporary folder.
    starts_ray
        Whether the run starts a local cluster.
    """
    return [
        *_processors(machine),
        _memory(machine),
        _shared_memory(machine),
        *([] if output is None else [_disk("free disk for results", output)]),
        _temporary_files(starts_ray),
        _home(),
        _open_files(),
        _uv(),
        _authentication(),
        *_gpus(machine),
    ]


def _processors(machine: Machine) -> list[Finding]:
    found = f"{machine.cpus} processors"
    if machine.cpu_limit is None or machine.cpu_limit >= machine.cpus:
        return [ok("processors", found)]
    text = f"{found}, of which the container may use {machine.cpu_limit:g}"
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):
        return [
            problem("processors", f"{text}, but RAY_USE_MULTIPROCESSING_CPU_COUNT lets Ray count all of them; unset it")
        ]
    if machine.cpu_limit < 1:
        return [warning("processors", f"{text}, less than one; give the container more")]
    return [ok("processors", f"{text}; Ray goes by that")]


def _memory(machine: Machine) -> Finding:
    if machine.memory_bytes is None:
        return warning("memory", "the system does not report it")
    return ok("memory", f"{format_bytes(machine.memory_free_bytes)} free of {format_bytes(machine.memory_bytes)}")


def _shared_memory(machine: Machine) -> Finding:
    what = "shared memory (/dev/shm)"
    if machine.shared_bytes is None or machine.shared_free_bytes is None:
        return warning(what, "missing, so Ray keeps objects on disk, which is slow")
    text = f"{format_bytes(machine.shared_free_bytes)} free of {format_bytes(machine.shared_bytes)}"
    if machine.shared_free_bytes >= _LITTLE_SHARED:
        return ok(what, text)
    return warning(
        what, f"{text}: Ray would keep objects on disk; give the container more with docker run --shm-size=1g"
    )


def _disk(what: str, folder: Path) -> Finding:
    size, free = disk_bytes(folder)
    if size is None or free is None:
        return warning(what, f"the file system of {folder} does not report its free space")
    text = f"{format_bytes(free)} of {format_bytes(size)} at {folder}"
    if free < _SCARCE_DISK:
        return problem(what, f"{text}; make room, or use another folder (output=FOLDER, or TMPDIR)")
    if free < _LITTLE_DISK or free < _FULL_DISK_SHARE * size:
        return warning(what, f"{text}: little; Ray stores nothing on a disk that is more than 95 % full")
    return ok(what, text)


def _temporary_files(starts_ray: bool) -> Finding:
    what = "free disk for temporary files"
    try:
        folder = base_folder() if starts_ray else Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return problem(what, f"{error.strerror}; set the environment variable TMPDIR to a writable folder")
    if starts_ray and (reason := why_not_writable(folder)) is not None:
        return problem(
            what,
            f"Ray needs a folder for its sockets and logs, and {folder} cannot be written to ({reason}); give another one in "
            "the environment variable RAY_TMPDIR",
        )
    return _disk(what, folder)


def _home() -> Finding:
    home = Path.home()
    if os.access(home, os.W_OK):
        return ok("home folder", f"{home} can be written to")
    return warning(
        "home folder",
        f"{home} is not writable: set HF_HOME to another folder for the Hugging Face hub, and RAY_AUTH_TOKEN for Ray",
    )


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:  # Windows
        return ok("open files (ulimit -n)", "this system sets no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Ray raises its soft limit up to the hard limit.
    if hard == resource.RLIM_INFINITY or hard >= _MANY_FILES:
        return ok("open files (ulimit -n)", f"{soft:,} a process, which Ray can raise")
    return warning(
        "open files (ulimit -n)",
        f"at most {hard:,} a process, which hundreds of actors exceed; set ulimit -Hn {_MANY_FILES}",
    )


def _uv() -> Finding:
    if os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1").lower() in ("0", "false"):
        return ok("uv run", "Ray is told not to follow it")
    if "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return ok("uv run", "not used")
    return warning(
        "uv run",
        "Ray starts every worker through uv run as well, which is slow and may take other packages; use uv sync and "
        ".venv/bin/python -m fedsim, or set RAY_ENABLE_UV_RUN_RUNTIME_ENV=0",
    )


def _authentication() -> Finding:
    mode = os.environ.get("RAY_AUTH_MODE")
    if os.environ.get("RAY_AUTH_TOKEN"):
        source: str | None = "RAY_AUTH_TOKEN"
    else:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
        source = str(path) if path.is_file() else None
    if mode is None:
        note = f"; a token is in {source}" if source else ""
        return ok("Ray's authentication", f"RAY_AUTH_MODE is not set{note}: a local cluster creates its own token")
    if mode == "token" and source is None:
        return problem(
            "Ray's authentication", "RAY_AUTH_MODE=token, but there is no token; set RAY_AUTH_TOKEN to the cluster's"
        )
    return ok("Ray's authentication", f"RAY_AUTH_MODE={mode}" + (f", token from {source}" if source else ""))


def _gpus(machine: Machine) -> list[Finding]:
    if not machine.gpus:
        return [ok("GPUs", f"none on {machine.host}")]
    found = []
    for number, gpu in enumerate(machine.gpus):
        text = f"{gpu.name}, {format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}"
        busy = gpu.total_bytes and gpu.free_bytes < 0.9 * gpu.total_bytes
        note = ": in use by another process" if busy else ""
        found.append((warning if busy else ok)(f"GPU {number}", text + note))
    return found
