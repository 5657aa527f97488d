"""Placement: how many actors go on which node, and what the cluster has free now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsim.executors.cluster.ray_internals import available_by_node
from fedsim.executors.cluster.sizing import ActorPlan, NodeResources, capacity


def free_by_node() -> dict[str, NodeResources]:
    """Return the free resources of every living node, by node id."""
    return {
        node: NodeResources(free.get("CPU", 0.0), free.get("GPU", 0.0))
        for node, free in sorted(available_by_node().items())
    }


def place(plan: ActorPlan, nodes: Mapping[str, NodeResources]) -> list[str]:
    """Return a node for each actor: the one with room that has the fewest actors so far; ties go to the first by id.

    This balances memory and network use; a smaller node gets as many as fit.
    """
    room = {node: capacity([free], plan.num_cpus, plan.num_gpus) for node, free in nodes.items()}
    placed: dict[str, int] = dict.fromkeys(nodes, 0)
    order: list[str] = []
    for _ in range(plan.count):
        open_nodes = [node for node in placed if placed[node] < room[node]]
        if not open_nodes:
            break
        node = min(open_nodes, key=lambda node: (placed[node], node))
        placed[node] += 1
        order.append(node)
    return order


def on_node(node: str) -> dict[str, Any]:
    """Return actor options that prefer a node, with any other as fallback."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}
