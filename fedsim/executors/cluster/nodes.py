"""The nodes of a cluster: free resources, and running a function on every node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.executors.cluster.connect import connect
from fedsim.executors.cluster.ray_internals import available_by_node
from fedsim.executors.cluster.sizing import NodeResources
from fedsim.executors.config import RayConfig


@dataclass(frozen=True)
class ClusterNode:
    """A living node."""

    id: str
    address: str
    free: NodeResources
    memory_bytes: int | None
    """Main memory that Ray counts for the node."""
    store_bytes: int | None
    """Size of the node's object store."""


@dataclass(frozen=True)
class NoAnswer:
    """Stands for the answer of a node that gave none."""

    reason: str


@contextmanager
def joined(config: RayConfig, data_bytes: int = 0) -> Iterator[None]:
    """Join the cluster at ``ray.address``, or start a local one, for the duration of a block.

    Parameters
    ----------
    data_bytes
        Bytes that will be stored for all actors; a local cluster's shared memory is sized to fit.

    Raises
    ------
    ResourceError
        If no cluster answers.
    """
    connected = connect(config, data_bytes)
    try:
        yield
    finally:
        if connected:
            ray.shutdown()


def cluster_nodes() -> list[ClusterNode]:
    """Return the living nodes of the cluster that this process has joined."""
    free = available_by_node()
    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        total, rest = node["Resources"], free.get(node["NodeID"], {})
        nodes.append(
            ClusterNode(
                id=node["NodeID"],
                address=node["NodeManagerAddress"],
                free=NodeResources(rest.get("CPU", 0.0), rest.get("GPU", 0.0)),
                memory_bytes=int(total["memory"]) if "memory" in total else None,
                store_bytes=int(total["object_store_memory"]) if "object_store_memory" in total else None,
            )
        )
    return sorted(nodes, key=lambda node: (node.address, node.id))


def ask_every_node(
    nodes: Sequence[ClusterNode], question: Callable[[], Any], timeout_seconds: float
) -> list[Any | NoAnswer]:
    """Return each node's answer, in the order of ``nodes``.

    Parameters
    ----------
    question
        A module-level function; it runs on each node, in its own process, without reserving resources.
    timeout_seconds
        Time limit for all answers together.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(question)
    pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    refs = [task.options(scheduling_strategy=pin(node.id, soft=False)).remote() for node in nodes]
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_seconds)
    return [_answer(ref) if ref in ready else _late(ref, timeout_seconds) for ref in refs]


def _answer(ref: ray.ObjectRef) -> Any | NoAnswer:
    try:
        return ray.get(ref)
    except ray_errors.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The error is in the last line of a traceback, but in the first line of Ray's own errors.
        line = lines[-1 if isinstance(error, ray_errors.RayTaskError) else 0] if lines else type(error).__name__
        return NoAnswer(line)


def _late(ref: ray.ObjectRef, timeout_seconds: float) -> NoAnswer:
    ray.cancel(ref, force=True)
    return NoAnswer(f"no answer within {timeout_seconds:g} s")
