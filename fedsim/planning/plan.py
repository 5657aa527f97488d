"""A plan: actors per node, how a round is spread over them, what limits their number, and expected problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedsim.configuration.schema import Config
from fedsim.core.errors import ResourceError
from fedsim.display.report import format_bytes
from fedsim.executors.cluster.placement import memory_note, memory_of_an_actor, place
from fedsim.executors.cluster.sizing import ActorPlan, NodeResources, capacity, plan_actors
from fedsim.planning.gpus import PlanNode, check_gpu, too_little_gpu_memory
from fedsim.planning.memory import MemoryEstimate

_FILLED_SHARE = 0.8
"""Fraction of an object store that Ray fills before it spills to disk (its setting ``object_spilling_threshold``)."""


@dataclass(frozen=True)
class Plan:
    """Placement of a run."""

    nodes: tuple[PlanNode, ...]
    actors: ActorPlan
    placed: tuple[int, ...]
    """Actors on each node."""
    threads: int
    cohort: int
    groups: int
    limit: str
    """What limits the number of actors."""
    memory: MemoryEstimate | None
    warnings: tuple[str, ...]
    reserved_bytes: int = 0
    """Main memory that an actor reserves with Ray."""

    @property
    def waves(self) -> int:
        """Work groups per round on the busiest actor."""
        return -(-self.groups // self.actors.count)


def make_plan(config: Config, nodes: Sequence[PlanNode], memory: MemoryEstimate | None) -> Plan:
    """Return the plan of a run on Ray.

    Parameters
    ----------
    nodes
        What the cluster has free.
    memory
        None if the model is not on this machine.

    Raises
    ------
    ResourceError
        If the run is not possible; the message suggests one that is.
    """
    actors, nodes, waits = _actors(config, nodes)
    free = [node.free for node in nodes]
    nodes_by_id = {node.id or node.name: node.free for node in nodes}
    chosen = Counter(place(actors, nodes_by_id))
    placed = tuple(chosen[node] for node in nodes_by_id)
    cohort = config.clients_at_once
    groups = cohort if actors.per_client else -(-cohort // config.group_size)
    warnings = [*waits, *([f"{actors.note}: they take turns"] if actors.note else [])]
    warnings += _idle(config, actors, cohort, groups)
    if memory is not None:
        memory = _within_stores(memory, nodes)
        check_gpu(config, nodes, placed, memory)
        _check_weights(config, nodes, memory)
        warnings += _tight(config, nodes, placed, memory, actors)
    limit, reserved = _limit(config, actors, free), 0
    if memory is not None and config.ray.address is not None and config.ray.memory == "estimate" and not waits:
        unreserved = {node.id or node.name: node.unreserved_bytes for node in nodes}
        known = {node: free for node, free in unreserved.items() if free is not None}
        if len(known) == len(nodes):
            reserved = memory_of_an_actor(memory.actor, list(chosen.elements()), known)
            warnings += filter(None, [memory_note(memory.actor, reserved)])
    return Plan(
        tuple(nodes), actors, placed, config.client.threads, cohort, groups, limit, memory, tuple(warnings), reserved
    )  # fmt: skip


def _actors(config: Config, nodes: Sequence[PlanNode]) -> tuple[ActorPlan, Sequence[PlanNode], list[str]]:
    """Return the actors, the nodes with what a run finds free, and a warning if it will have to wait for that."""
    request = config.ray, config.client.threads, config.partition.population
    try:
        return plan_actors(*request, [node.free for node in nodes]), nodes, []
    except ResourceError as error:
        empty = [replace(node, free=node.whole) for node in nodes if node.whole is not None]
        if config.ray.placement == "none" or config.ray.address is None or len(empty) < len(nodes):
            raise
        actors = plan_actors(*request, [node.free for node in empty])
        return (
            actors,
            empty,
            [f"a run would wait until others leave room, and this plan is of an empty cluster: {error}"],
        )


def _within_stores(memory: MemoryEstimate, nodes: Sequence[PlanNode]) -> MemoryEstimate:
    """Return the estimate with the frozen-layer cache capped as in a run: at half of all object stores."""
    stores = [node.store_bytes for node in nodes if node.store_bytes is not None]
    return replace(memory, caches=min(memory.caches, sum(stores) // 2)) if len(stores) == len(nodes) else memory


def _limit(config: Config, actors: ActorPlan, free: Sequence[NodeResources]) -> str:
    if config.ray.actors == "per_client":
        return f"ray.actors=per_client: one for each of {config.partition.population} clients"
    if config.ray.actors != "pool":
        return f"ray.actors={config.ray.actors}"
    by_cpus = capacity(free, actors.num_cpus, 0.0)
    by_gpus = capacity(free, 0.0, actors.num_gpus) if actors.num_gpus else None
    if actors.count == config.partition.population and actors.count < min(by_cpus, by_gpus or by_cpus):
        return f"clients: no more actors than partition.clients={config.partition.population}"
    gpus = "" if by_gpus is None else f"; the GPUs have room for {by_gpus}"
    if by_gpus is not None and by_gpus <= by_cpus:
        return f"GPUs: room for {by_gpus} actors of {actors.num_gpus:.4g} GPUs; the CPUs have room for {by_cpus}"
    return f"CPUs: room for {by_cpus} actors of {actors.num_cpus:.4g} CPUs{gpus}"


def _idle(config: Config, actors: ActorPlan, cohort: int, groups: int) -> list[str]:
    if actors.per_client or groups >= actors.count:
        return []
    most = min(actors.count, cohort)
    size = cohort // most
    larger = (
        f"; set group_size={size} for {-(-cohort // size)} groups (which changes last bits)"
        if size < config.group_size
        else ""
    )
    return [
        f"a round has {groups} work group{'s' if groups > 1 else ''} ({cohort} clients in groups of {config.group_size}), so "
        f"{actors.count - groups} of {actors.count} actors stay idle while clients train{larger}, or ray.actors={groups}"
    ]


def _check_weights(config: Config, nodes: Sequence[PlanNode], memory: MemoryEstimate) -> None:
    """Refuse weights that do not fit a node's memory even though actors share them."""
    for node in nodes:
        if node.memory_bytes is None or memory.weights <= node.memory_bytes:
            continue
        halved = config.model.dtype == "float32" and memory.weights // 2 <= node.memory_bytes
        remedy = "set model.dtype=bfloat16" if halved else f"{format_bytes(memory.weights)} are needed on every node"
        if config.model.quantize != "int4":
            remedy += f", or set model.quantize={'int4' if config.model.quantize == 'int8' else 'int8 or int4'}"
        kind = "" if config.model.quantize == "none" else f" with model.quantize={config.model.quantize}"
        raise ResourceError(
            f"the weights of model {config.model.location} take {format_bytes(memory.weights)} in {config.model.dtype}{kind}, "
            f"but {node.name} has {format_bytes(node.memory_bytes)} of memory; {remedy}"
        )


def _tight(
    config: Config, nodes: Sequence[PlanNode], placed: Sequence[int], memory: MemoryEstimate, actors: ActorPlan
) -> list[str]:
    """Return a warning for each resource that a node is expected to run out of."""
    found: list[str | None] = []
    for index, (node, count) in enumerate(zip(nodes, placed, strict=True)):
        # The driver's node is not known; the first node is as good a guess as any.
        stored = memory.stored_beside(count, actors.count)
        shared = stored + (memory.driver if index == 0 else 0)
        found += [
            _too_little_memory(node, count, shared, memory, sum(placed) - count),
            _too_little_shared_memory(config, node, stored, memory),
            too_little_gpu_memory(node, count, memory, actors.num_gpus),
        ]
    return [sentence for sentence in found if sentence is not None]


def _too_little_memory(
    node: PlanNode, actors: int, shared_bytes: int, memory: MemoryEstimate, actors_elsewhere: int
) -> str | None:
    needed = shared_bytes + actors * memory.actor
    if node.memory_bytes is None or needed <= node.memory_bytes or not actors:
        return None
    fits = max(0, (node.memory_bytes - shared_bytes) // memory.actor)
    remedy = f"set ray.actors={actors_elsewhere + fits}" if fits else "choose a smaller model, or a larger machine"
    return (
        f"{node.name}: {actors} actors are expected to need {format_bytes(needed)} of {format_bytes(node.memory_bytes)} "
        f"of memory; {remedy}"
    )


def _too_little_shared_memory(config: Config, node: PlanNode, stored: int, memory: MemoryEstimate) -> str | None:
    if node.store_bytes is None or stored <= _FILLED_SHARE * node.store_bytes:
        return None
    if config.ray.address is not None:
        remedy = "give it more (ray start --object-store-memory, in a container docker run --shm-size)"
    elif config.ray.object_store_mb is not None:
        remedy = f"set ray.object_store_mb={math.ceil(stored / _FILLED_SHARE / 2**20)}"
    else:
        remedy = "give the machine more shared memory (in a container docker run --shm-size)"
    return (
        f"{node.name}: up to {format_bytes(stored)} will be stored, but the object store has room for "
        f"{format_bytes(node.store_bytes)}, and Ray spills to disk above {_FILLED_SHARE:.0%} of it; {remedy}"
        f"{', or lower model.trunk_cache.memory_mb' if memory.caches else ''}"
    )
