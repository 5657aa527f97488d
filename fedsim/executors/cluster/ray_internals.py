"""The parts of Ray without a public form that fedsim uses, in one place; each has a fallback where this Ray has no such part.

Ray itself is imported where it is needed: a local cluster is secured before that.

No other file imports from ``ray._private``, ``ray._raylet`` or ``ray.core`` (``tests/executors/test_ray_internals.py``).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

Resources = dict[str, float]

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_HEAD_SERVICE, _HEAD_METHOD = "NodeInfoGcsService", "GetClusterId"


def private(name: str) -> Any:
    """Return the module ``ray._private.NAME``, or None if this Ray has none."""
    return _module(f"ray._private.{name}")


def available_by_node() -> dict[str, Resources]:
    """Return the free resources of every living node, by node id.

    Ray's public API has the totals of each node, and what is free in the whole cluster. The fallback is exact on one node and
    on an idle cluster; else it counts all that is taken anywhere against each node, so that it never promises too much.
    """
    of_nodes = getattr(private("state"), "available_resources_per_node", None)
    if of_nodes is not None:
        return dict(of_nodes())
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    taken = {name: amount - free.get(name, 0.0) for name, amount in total.items()}
    return {
        node: {name: max(0.0, amount - taken.get(name, 0.0)) for name, amount in resources.items()}
        for node, resources in nodes.items()
    }


def detected_cpus() -> int:
    """Return the CPUs that a local Ray would have; the fallback counts those of this process and its control group."""
    count = getattr(private("utils"), "get_num_cpus", None)
    if count is not None:
        return int(count(override_docker_cpu_warning=True))
    # The process may be bound to some of the machine's processors, but Ray counts all.
    cpus = os.cpu_count() or 1
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or ``max``
        return cpus


def head_method() -> str | None:
    """Return the path of the gRPC call that any head of this Ray's version answers; None if there is no such call.

    Its request has no field, so that empty bytes are one.
    """
    described = getattr(_module("ray.core.generated.gcs_service_pb2"), "DESCRIPTOR", None)
    service = None if described is None else described.services_by_name.get(_HEAD_SERVICE)
    if service is None or _HEAD_METHOD not in service.methods_by_name:
        return None
    return f"/{service.full_name}/{_HEAD_METHOD}"


def store_statistics() -> Any:
    """Return what Ray knows of its object stores (``object_store_bytes_used``, ``spilled_bytes_total``), or None."""
    reply = getattr(private("internal_api"), "get_memory_info_reply", None)
    state = getattr(private("state"), "state", None)
    return None if reply is None or state is None else reply(state).store_stats


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
