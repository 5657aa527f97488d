"""How many actors run and what each reserves: pure functions of the config and the cluster's resources."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.suggestions import Request, most_actors, nearest_requests
from fedsim.executors.config import RayConfig

RESOURCE_STEP = 1e-4
"""Ray's resource granularity; shares are rounded down to it, so that n shares of 1/n always fit."""


@dataclass(frozen=True)
class NodeResources:
    """Free CPUs and GPUs of one node, or of one bundle of a placement group."""

    cpus: float
    gpus: float
    gpu_part: float = 0.0
    """Part of one GPU, beside whole ones. Of a node that is not known: free halves may lie on two GPUs."""


@dataclass(frozen=True)
class ActorPlan:
    """Actors to start."""

    count: int
    num_cpus: float
    num_gpus: float
    per_client: bool
    note: str = ""
    """A sentence for the user where the plan differs from the request."""


def _floor(value: float) -> float:
    return math.floor(value / RESOURCE_STEP + 1e-6) * RESOURCE_STEP


def _shares(node: NodeResources, num_gpus: float) -> int:
    """Return how many shares of a GPU, or sets of several, a node has."""
    if num_gpus > 1:
        return int(node.gpus) // int(num_gpus)
    return int(node.gpus) * math.floor(1 / num_gpus + 1e-6) + math.floor(node.gpu_part / num_gpus + 1e-6)


def capacity(nodes: Sequence[NodeResources], num_cpus: float, num_gpus: float) -> int:
    """Return how many actors fit, counted per node, since an actor cannot span two."""
    total = 0
    for node in nodes:
        fits = node.cpus / num_cpus if num_cpus else math.inf
        if num_gpus:
            fits = min(fits, _shares(node, num_gpus))
        total += math.floor(fits + 1e-6)
    return total


def plan_actors(config: RayConfig, threads: int, population: int, nodes: Sequence[NodeResources]) -> ActorPlan:
    """Return the actors to start on ``nodes``.

    Parameters
    ----------
    threads
        CPU threads per worker; also the CPUs per actor if ``ray.num_cpus_per_actor`` is not given.
    population
        Number of clients: the number of actors with ``per_client``, an upper bound on it otherwise.

    Raises
    ------
    ResourceError
        If the requested actors do not fit; the message suggests requests that do.
    """
    request = Request(config, threads, population)
    plan = _fitting(request, nodes)
    if plan is None:
        raise ResourceError(_refusal(request, nodes))
    return plan


def is_possible(request: Request, nodes: Sequence[NodeResources]) -> bool:
    """Return whether the requested actors fit."""
    return _fitting(request, nodes) is not None


def _fitting(request: Request, nodes: Sequence[NodeResources]) -> ActorPlan | None:
    """Return the actors to start, or None if the requested ones do not fit."""
    config, num_gpus, count = request.config, _floor(request.config.num_gpus_per_actor), request.count
    cpus = float(request.threads) if config.num_cpus_per_actor is None else config.num_cpus_per_actor
    room = capacity(nodes, cpus, num_gpus)
    if count is None:
        count = min(room, request.population)
        return ActorPlan(count, cpus, num_gpus, per_client=False) if count else None
    note = ""
    if room < count and config.num_cpus_per_actor is None:
        # More actors than CPUs were requested: let them share, since only the reservation prevents it.
        cpus = _shared_cpus(nodes, count, num_gpus, cpus)
        room = capacity(nodes, cpus, num_gpus) if cpus else 0
        sharing = f"{count} actors share {sum(node.cpus for node in nodes):g} CPUs, {cpus:.4g} each"
        note = sharing if count > 1 else f"an actor of {request.threads} threads has {cpus:.4g} CPUs"
    return ActorPlan(count, cpus, num_gpus, config.actors == "per_client", note) if room >= count else None


def _shared_cpus(nodes: Sequence[NodeResources], count: int, num_gpus: float, upper: float) -> float:
    """Return the largest CPU reservation with which ``count`` actors fit; 0 if there is none."""
    parts = range(1, math.floor(upper / RESOURCE_STEP) + 1)
    # The smaller the share, the more fit.
    fewest = bisect_left(parts, True, key=lambda n: capacity(nodes, _floor(upper / n), num_gpus) >= count)
    return _floor(upper / parts[fewest]) if fewest < len(parts) else 0.0


def _refusal(request: Request, nodes: Sequence[NodeResources]) -> str:
    """Return why the requested actors do not fit, and what would."""

    def accepts(other: Request) -> bool:
        return is_possible(other, nodes)

    remedies = [" and ".join(near.words) for near in nearest_requests(request, accepts)]
    config = request.config
    if config.num_gpus_per_actor and not any(node.gpus >= 1 or node.gpu_part for node in nodes):
        why = f"ray.num_gpus_per_actor={config.num_gpus_per_actor:.4g} asks for a GPU, but Ray has none free"
        remedies += ["declare GPUs with ray.num_gpus"] if remedies and config.address is None else []
    elif request.count is None:
        free = ", ".join(dict.fromkeys(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes)) or "nothing"
        why = f"no actor of {_needs(request)} fits a node (free: {free})"
    else:
        asked = f"ray.actors={config.actors} needs {request.count} actors of {_needs(request)} each"
        why = f"{asked}, but only {most_actors(request, accepts)} fit"
    if not remedies:
        return f"{why}; every actor needs a part of a CPU, and none is free"
    return f"{why}; set {', or '.join(remedies)}"


def _needs(request: Request) -> str:
    cpus, gpus = request.config.num_cpus_per_actor, request.config.num_gpus_per_actor
    if cpus is not None or request.count is None:
        needs = f"{request.threads if cpus is None else cpus:.4g} CPUs"
    else:
        needs = "a share of the CPUs"
    return f"{needs} and {gpus:.4g} GPUs" if gpus else needs
