"""A local Ray cluster: loopback only, in its own temporary folder, removed at the end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.lean import lean
from fedsim.executors.cluster.ray_internals import private
from fedsim.executors.config import RayConfig
from fedsim.records.temporary import OwnedFolder, sweep

PREFIX = "fedsim-ray-"
_LONGEST_SOCKET_PATH = 107
_STORE_MEGABYTES = 256
_SHARED_MEMORY = "/dev/shm"

_folder: OwnedFolder | None = None


def secure() -> None:
    """Create an authentication token for the local cluster; call before Ray is imported, which reads the setting then.

    Ray would otherwise take the token from the user's home folder, or write one there, which fails where the home folder
    is read-only, and changes how the user's later clusters authenticate.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def start(config: RayConfig, data_bytes: int) -> None:
    """Start a local Ray cluster and connect to it.

    Parameters
    ----------
    data_bytes
        Bytes that will be stored for all actors; the shared memory is sized to fit.

    Raises
    ------
    ResourceError
        If no temporary folder is writable.
    Exception
        Whatever Ray raises if it does not start.
    """
    import ray

    global _folder
    discard()
    base = base_folder()
    sweep(PREFIX, base)
    try:
        _folder = OwnedFolder(PREFIX, base)
    except OSError as error:
        raise ResourceError(
            f"Ray needs a folder for its sockets and logs, and {base} cannot be written ({error.strerror}); give another one "
            "in the environment variable RAY_TMPDIR"
        ) from None
    atexit.register(_at_exit)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray gives its workers niceness 15: next to any other busy process they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray would start workers ahead and wait for all of them inside ``ray.init``, with Python's global lock held: neither
    # signals nor deadlines would work meanwhile, and a worker that dies as it starts would be waited for without end.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray would free objects once a second. Until then each new one takes other pages of the shared memory, which every process
    # has to map first: that takes longer than to write them.
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "10")
    with _unlike_a_cluster(), lean(config.metrics is True):
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            object_store_memory=store_bytes(config, data_bytes),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(_folder.path),
            # Where shared memory is missing or not writable, as in some containers, objects go to disk.
            _plasma_directory=None if os.access(_SHARED_MEMORY, os.W_OK) else str(_folder.path),
        )


@contextlib.contextmanager
def _unlike_a_cluster() -> Iterator[None]:
    """Make Ray use and listen on 127.0.0.1 only.

    Ray does so by default on macOS and Windows. Its switch is an environment variable that is read when Ray is imported and
    holds for the whole process; but a run that joins a cluster later needs the machine's real address. So the switch's effect
    is limited to this start. A Ray without that switch listens on the machine's address, where requests need the run's token.
    """
    constants = private("ray_constants")
    if not hasattr(constants, "ENABLE_RAY_CLUSTER"):
        yield
        return
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def discard() -> None:
    """Remove the folder of a local cluster that has ended; call after ``ray.shutdown()``."""
    global _folder
    if _folder is not None:
        _folder.remove()
        _folder = None
        atexit.unregister(_at_exit)


@contextlib.contextmanager
def discarded() -> Iterator[None]:
    """Remove all that is left of a local cluster when the block ends, for whatever reason."""
    try:
        yield
    finally:
        discard()


def logs() -> Path | None:
    """Return the folder of Ray's logs; None if there is no local cluster."""
    return None if _folder is None else _folder.path / "session_latest" / "logs"


def keep_logs(error: BaseException, folder: Path) -> bool:
    """Copy Ray's logs to ``folder`` if a local cluster caused ``error``; return whether it did."""
    logs_folder = logs()
    if logs_folder is None or not any(type(cause).__module__.startswith("ray.") for cause in _causes(error)):
        return False
    with contextlib.suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(logs_folder, folder)
    return folder.is_dir()


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _at_exit() -> None:
    import ray

    ray.shutdown()
    discard()


def base_folder() -> Path:
    """Return the temporary folder, or ``/tmp`` if its path is too long for a socket path."""
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    pid = os.getpid()
    socket = f"{base}/{PREFIX}{pid}-12345678/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
    return Path(base if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH else "/tmp")


def store_bytes(config: RayConfig, data_bytes: int) -> int:
    """Return the size of the object store: twice the data, but at most the shared memory there is.

    This is a bound: memory is allocated on use. Ray would put the whole of a larger store on disk.
    """
    return (config.object_store_mb or _store_megabytes(data_bytes)) * 2**20


def _store_megabytes(data_bytes: int) -> int:
    wanted = _STORE_MEGABYTES + 2 * data_bytes // 2**20
    try:
        system = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return wanted
    free = system.f_bavail * system.f_frsize // 2**20
    return min(wanted, max(_STORE_MEGABYTES, int(0.9 * free)))
