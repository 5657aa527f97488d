"""Placement: how many actors go on which node, and what the cluster has free now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from fedsim.display.report import format_bytes
from fedsim.executors.cluster.labels import selected
from fedsim.executors.cluster.ray_internals import available_by_node
from fedsim.executors.cluster.sizing import ActorPlan, NodeResources, capacity
from fedsim.executors.config import ACCELERATOR, RayConfig


@dataclass(frozen=True)
class NodeState:
    """A living node: what is free, and what it has in all."""

    free: NodeResources
    whole: NodeResources
    memory: int = 0
    """Bytes of main memory that nobody has reserved with Ray."""
    labels: Mapping[str, str] = field(default_factory=dict)


def node_states() -> dict[str, NodeState]:
    """Return the state of every living node, by node id."""
    free, found = available_by_node(), {}
    for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"])):
        if node["Alive"]:
            rest = free.get(node["NodeID"], {})
            found[str(node["NodeID"])] = NodeState(
                _resources(rest), _resources(node["Resources"]), int(rest.get("memory", 0)), node.get("Labels") or {}
            )
    return found


def _resources(amounts: Mapping[str, float]) -> NodeResources:
    return NodeResources(amounts.get("CPU", 0.0), amounts.get("GPU", 0.0))


def free_by_node() -> dict[str, NodeResources]:
    """Return the free resources of every living node, by node id."""
    return {node: state.free for node, state in node_states().items()}


def usable_nodes(config: RayConfig) -> dict[str, NodeState]:
    """Return the nodes on which a run's actors may be: all, or those that ``ray.labels`` and ``ray.accelerator_type`` select.

    Raises
    ------
    ResourceError
        If no node has the labels.
    """
    states = node_states()
    if not config.selector:
        return states
    held = {node: state.labels for node, state in states.items()}
    return {node: states[node] for node in selected(held, config.selector, written(config))}


def written(config: RayConfig) -> str:
    """Return what a config says of the nodes' labels."""
    told = [f"{key}={value}" for key, value in config.labels.items()]
    labels = [f"the labels {', '.join(told)} (ray.labels)"] if told else []
    accelerator = config.accelerator_type
    kinds = [] if accelerator is None else [f"{ACCELERATOR}={accelerator} (ray.accelerator_type={accelerator})"]
    return " and ".join([*labels, *kinds])


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


def in_bundle(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Return the options of an actor in a bundle, or, with -1, in any that has room."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)}


def memory_of_an_actor(estimate: int | None, placed: Sequence[str], free: Mapping[str, int]) -> int:
    """Return the bytes that each actor can reserve where it is placed: at most the estimate, and what every place has."""
    if estimate is None or not placed:
        return 0
    return max(0, min(estimate, *(free.get(where, 0) // count for where, count in Counter(placed).items())))


def memory_note(estimate: int | None, reserved: int) -> str | None:
    """Say where actors reserve less than they are expected to need; None where they do not."""
    if estimate is None or reserved >= estimate:
        return None
    what = f"reserve {format_bytes(reserved)}" if reserved else "reserve no memory"
    return (
        f"actors are expected to need {format_bytes(estimate)} each, but Ray has less memory free for them; they {what} "
        "(ray.memory)"
    )
