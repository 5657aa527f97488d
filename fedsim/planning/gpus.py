"""The GPUs of a plan: whether what an actor has of them holds the model, and what would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clients.budget import CONTEXT_BYTES
from fedsim.configuration.schema import Config
from fedsim.core.errors import ResourceError
from fedsim.display.report import format_bytes
from fedsim.executors.cluster.sizing import NodeResources, is_possible
from fedsim.executors.cluster.suggestions import Request, most_actors
from fedsim.planning.memory import MemoryEstimate


@dataclass(frozen=True)
class PlanNode:
    """A node's resources for the run; None where unknown from here."""

    name: str
    free: NodeResources
    memory_bytes: int | None = None
    store_bytes: int | None = None
    """Largest possible object store on the node."""
    gpu_bytes: int | None = None
    """Memory of its smallest GPU."""
    id: str = ""
    """Ray's node id; breaks ties between nodes with equally many actors."""
    whole: NodeResources | None = None
    """What a node of a joined cluster has in all."""
    unreserved_bytes: int | None = None
    """Main memory of a joined cluster's node that nobody has reserved with Ray."""


def check_gpu(config: Config, nodes: Sequence[PlanNode], placed: Sequence[int], memory: MemoryEstimate) -> None:
    """Refuse a GPU share, or GPUs, too small for the model alone.

    Raises
    ------
    ResourceError
        If they are.
    """
    if memory.actor_gpu is None:
        return
    least = CONTEXT_BYTES + max(memory.gpu_weights) + memory.vectors
    used = [
        (node.gpu_bytes, node.name) for node, actors in zip(nodes, placed, strict=True) if actors and node.gpu_bytes
    ]
    share = min(1.0, config.ray.num_gpus_per_actor)
    if not used or least <= share * min(used)[0]:
        return
    smallest, name = min(used)
    remedy = "choose a smaller model or a shorter model.dtype"
    if _offload_helps(config, memory, smallest):
        remedy += ", or set model.offload=true"
    if parts := smallest // least:
        remedy = f"set {_larger_share(config, parts, [node.free for node in nodes])}"
    elif more := _more_gpus(config, nodes, memory, smallest):
        remedy = f"set ray.num_gpus_per_actor={more}, or {remedy}"
    raise ResourceError(
        f"a share of {share:.4g} of a GPU with {format_bytes(smallest)} on {name} does not hold the "
        f"{format_bytes(least)} that an actor takes before its first pass; {remedy}"
    )


def _offload_helps(config: Config, memory: MemoryEstimate, gpu_bytes: int) -> bool:
    """Return whether a GPU holds the weights with layers in main memory, if the config can have that."""
    if memory.offload or not memory.layers[1] or config.model.compile or config.model.autocast != "off":
        return False
    offloaded = replace(memory, offload=True)
    return CONTEXT_BYTES + max(offloaded.gpu_weights) + memory.vectors <= gpu_bytes


def _more_gpus(config: Config, nodes: Sequence[PlanNode], memory: MemoryEstimate, gpu_bytes: int) -> int | None:
    """Return the fewest GPUs of one node, more than asked for, over which the weights fit; None if there are none."""
    if config.model.compile:  # which is refused over several
        return None
    room = max(int(node.free.gpus) for node in nodes)
    for gpus in range(int(config.ray.num_gpus_per_actor) + 1, min(room, memory.layers[0]) + 1):
        if gpus > 1 and CONTEXT_BYTES + max(memory.weights_over(gpus)) + memory.vectors <= gpu_bytes:
            return gpus
    return None


def _larger_share(config: Config, parts: int, free: Sequence[NodeResources]) -> str:
    """Return the overrides for a GPU in ``parts``, and for fewer actors if not all fit then."""
    request = Request(config.ray, config.client.threads, config.partition.population).with_gpu_parts(parts)
    if not is_possible(request, free):
        request = request.with_actors(most_actors(request, lambda other: is_possible(other, free)))
    return " and ".join(request.words)


def too_little_gpu_memory(node: PlanNode, actors: int, memory: MemoryEstimate, share: float) -> str | None:
    """Return a warning if passes are expected not to fit an actor's share of a GPU; None if they do."""
    if memory.actor_gpu is None or node.gpu_bytes is None or not actors:
        return None
    share = min(1.0, share)
    if memory.actor_gpu <= share * node.gpu_bytes:
        return None
    fits = node.gpu_bytes // memory.actor_gpu
    fewer = f"set ray.num_gpus_per_actor=1/{fits}, or " if fits else ""
    return (
        f"{node.name}: an actor is expected to need {format_bytes(memory.actor_gpu)} of its GPU share of "
        f"{format_bytes(share * node.gpu_bytes)}; passes that do not fit are split in two, which takes time: {fewer}lower "
        "client.micro_batch_tokens"
    )
