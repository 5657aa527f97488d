"""Starting a Ray of the run's own, or joining a cluster when asked to; never joining one by accident."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import ray

from fedsim.core.errors import ResourceError
from fedsim.executors.config import RayConfig
from fedsim.executors.plan import NodeResources

_CONNECT_SECONDS = 5.0
_STORE_MEGABYTES = 256
_SHARED_MEMORY = "/dev/shm"
_EXCLUDES = [".git", ".venv", "runs", "docs", "tests", "benchmarks", "**/__pycache__", "*.egg-info"]


def connect(config: RayConfig, data_bytes: int) -> bool:
    """Connect this process to Ray as the ``ray`` section says; return whether it was connected here.

    Parameters
    ----------
    data_bytes
        Size of what will be stored for all actors; the shared memory of a Ray of the run's own is fitted to it.

    Raises
    ------
    ResourceError
        If no cluster answers, or Ray does not start.
    """
    address = config.address
    if ray.is_initialized():
        if address is None:
            raise ResourceError("this process is connected to Ray already; set ray.address=auto to use that cluster")
        return False
    if address is not None:
        _check_reachable(address)
    try:
        if address is None:
            _start_own(config, data_bytes)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_runtime_env())
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "a Ray of its own" if address is None else f"the Ray cluster at ray.address={address}"
        raise ResourceError(f"cannot reach {where}: {reason}") from error
    return True


def free_resources() -> list[NodeResources]:
    """Return what every node of the cluster has free."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [NodeResources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in free.values()]


def _start_own(config: RayConfig, data_bytes: int) -> None:
    # Actors are processes of the raylet and take its environment over: they find the top-level packages by it.
    paths = [str(_project_root()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray gives its workers niceness 15: beside any other busy process they would hardly run at all.
    os.environ.setdefault("RAY_worker_niceness", "0")
    megabytes = config.object_store_mb or _store_megabytes(data_bytes)
    ray.init(
        address="local",
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        object_store_memory=megabytes * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _store_megabytes(data_bytes: int) -> int:
    """Return the size of the object store: room for the data twice, but not more than there is shared memory.

    It is a bound: memory is taken when it is used. Ray would put a larger store on disk, all of it.
    """
    wanted = _STORE_MEGABYTES + 2 * data_bytes // 2**20
    try:
        system = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return wanted
    free = system.f_bavail * system.f_frsize // 2**20
    return min(wanted, max(_STORE_MEGABYTES, int(0.9 * free)))


def _check_reachable(address: str) -> None:
    """Ask the cluster's port before Ray does, which would keep trying for minutes.

    Raises
    ------
    ResourceError
        If nothing answers there, or ``address`` is no address.
    """
    named = f"ray.address={address}"
    if address == "auto" and "RAY_ADDRESS" in os.environ:
        address = os.environ["RAY_ADDRESS"]
        named = f"RAY_ADDRESS={address} (ray.address=auto)"
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ResourceError(f"{named} is not an address such as 10.0.0.1:6379; give one, or auto, or null")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"no Ray cluster answers at {named}: {reason}; start one, or set ray.address=null"
        ) from None


def _project_root() -> Path:
    return Path(__file__).resolve().parents[2]


def _runtime_env() -> dict[str, Any]:
    """Ship a source checkout to a cluster that we join; a submitted job has brought its files, an installation is there."""
    root = _project_root()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or not (root / "pyproject.toml").exists():
        return {}
    return {"working_dir": str(root), "excludes": _EXCLUDES}
