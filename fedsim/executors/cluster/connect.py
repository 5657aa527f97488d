"""Start a local Ray cluster, or join an existing one when asked to; never join one by accident."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from fedsim.core.errors import ResourceError
from fedsim.executors.about import JOB_VARIABLE, About
from fedsim.executors.cluster import local_cluster
from fedsim.executors.cluster.authentication import sent_token, token_refusal
from fedsim.executors.cluster.ray_internals import head_method
from fedsim.executors.config import RayConfig

_CONNECT_SECONDS = 5.0
_EXCLUDES = [".git", "**/__pycache__"]
"""What stays here beside what .rayignore leaves out."""


def connect(config: RayConfig, data_bytes: int, about: About | None = None) -> bool:
    """Connect this process to Ray as the ``ray`` section says; return whether it was connected here.

    Parameters
    ----------
    data_bytes
        Bytes that will be stored for all actors; a local cluster's shared memory is sized to fit.
    about
        The run, if it is for one: a job on a cluster has its metadata. Where this process is connected already, its job keeps
        what it has.

    Raises
    ------
    ResourceError
        If no cluster answers, or Ray does not start.
    """
    address = config.address
    if address is not None:
        _refuse_what_is_no_cluster(address, f"ray.address={address}")
    if ray.is_initialized():
        if address is None:
            raise ResourceError(
                "this process is connected to Ray already; set ray.address=auto to run there, or executor=local to do without"
            )
        return False
    if address is not None:
        _check_reachable(address)
    try:
        if address is None:
            _let_actors_find_us()
            local_cluster.start(config, data_bytes)
        else:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=_runtime_env(),
                job_config=JobConfig(metadata=None if about is None else about.metadata),
                namespace=None if about is None else about.namespace,
            )
    except ResourceError:
        raise
    except Exception as error:  # Ray's exceptions here share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "a local Ray cluster" if address is None else f"the Ray cluster at ray.address={address}"
        raise ResourceError(f"cannot {'start' if address is None else 'reach'} {where}: {reason}") from error
    return True


def _let_actors_find_us() -> None:
    """Put the packages' folder on the path of actors: they are processes of the raylet, which inherits this environment."""
    paths = [str(_project_root()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))


def _check_reachable(address: str) -> None:
    """Check the cluster's port first: Ray itself would keep trying for minutes.

    Raises
    ------
    ResourceError
        If nothing answers there, something other than Ray answers, or ``address`` is not an address.
    """
    named = f"ray.address={address}"
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        address = os.environ["RAY_ADDRESS"]
        named = f"RAY_ADDRESS={address} (ray.address=auto)"
    if address == "auto":
        return
    _refuse_what_is_no_cluster(address, named)
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ResourceError(f"{named} is not an address such as 10.0.0.1:6379; give one, or auto, or null")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:  # a name that cannot be encoded is not a host name
        reason = getattr(error, "strerror", None) or str(error)
        raise ResourceError(
            f"no Ray cluster answers at {named}: {reason}; start one, or set ray.address=null"
        ) from None
    if os.environ.get("RAY_USE_TLS", "0") != "1":
        _check_is_ray(f"{host}:{port}", named)


def _refuse_what_is_no_cluster(address: str, named: str) -> None:
    if address == "local":  # Ray would start a cluster that listens on all interfaces and leaves its folder behind
        raise ResourceError(f"{named} names no cluster; set ray.address=null for a local cluster")
    if address.startswith("ray://"):
        raise ResourceError(
            f"{named} is a Ray Client address, which fedsim does not support; submit a job with ray job submit, or give the "
            "head's own address, such as 10.0.0.1:6379, on a machine of the cluster"
        )


def _check_is_ray(address: str, named: str) -> None:
    """Send a request that only a Ray head can answer; Ray itself would retry for minutes.

    Raises
    ------
    ResourceError
        If there is no answer within seconds, or it is not Ray's.
    """
    import grpc

    method = head_method()
    if method is None:  # a version that answers something else: its own error has to do
        return
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=_CONNECT_SECONDS, metadata=sent_token())
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                what = f"what listens at {named} has not answered within {_CONNECT_SECONDS:g} s"
            elif error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
                what = f"what answers at {named} is not the head of a Ray cluster"
            elif error.code() == grpc.StatusCode.UNAUTHENTICATED:  # Ray itself takes 20 seconds to say less
                raise ResourceError(token_refusal(named)) from None
            else:  # it is a Ray head; Ray's own error explains the problem
                return
            raise ResourceError(
                f"{what}; give the address that `ray start --head` has printed, or set ray.address=null"
            ) from None


def _project_root() -> Path:
    return Path(__file__).resolve().parents[3]


def _runtime_env() -> dict[str, Any]:
    """Ship a source checkout to the joined cluster; submitted jobs and installed packages need none."""
    root = _project_root()
    if JOB_VARIABLE in os.environ or not (root / "pyproject.toml").exists():
        return {}
    return {"working_dir": str(root), "excludes": _excludes(root)}


def _excludes(root: Path) -> list[str]:
    """Return the patterns of what is not shipped, those of .rayignore among them: before 2.53 Ray does not read it."""
    file = root / ".rayignore"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    # Of all patterns that fit the last one holds: our own come after those that let folders through.
    return [*(line for line in lines if line and not line.startswith("#")), *_EXCLUDES]
