"""How many actors run, and what each of them reserves. Pure functions of the config and of what the cluster has."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.core.errors import ResourceError
from fedsim.executors.config import RayConfig

RESOURCE_STEP = 1e-4
"""Ray counts resources in ten-thousandths; shares are rounded down to it, so that n shares of 1/n always fit."""


@dataclass(frozen=True)
class NodeResources:
    """Free CPUs and GPUs of one node."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class ActorPlan:
    """Actors to start."""

    count: int
    num_cpus: float
    num_gpus: float
    per_client: bool
    note: str = ""
    """A sentence for the user where the plan is not simply what was asked for."""


def _floor(value: float) -> float:
    return math.floor(value / RESOURCE_STEP + 1e-6) * RESOURCE_STEP


def capacity(nodes: Sequence[NodeResources], num_cpus: float, num_gpus: float) -> int:
    """Return how many actors fit; counted node by node, because an actor cannot straddle two."""
    total = 0
    for node in nodes:
        fits = node.cpus / num_cpus if num_cpus else math.inf
        if num_gpus:
            fits = min(fits, int(node.gpus) * math.floor(1 / num_gpus + 1e-6))
        total += math.floor(fits + 1e-6)
    return total


def plan_actors(config: RayConfig, threads: int, population: int, nodes: Sequence[NodeResources]) -> ActorPlan:
    """Return the actors to start on ``nodes``.

    Parameters
    ----------
    threads
        CPU threads of a worker; the CPUs of an actor where ``ray.num_cpus_per_actor`` is not given.
    population
        Number of clients; the number of actors with ``per_client``, and never fewer than needed otherwise.

    Raises
    ------
    ResourceError
        If the actors asked for do not fit; the sentence names the nearest request that does.
    """
    num_gpus = _floor(config.num_gpus_per_actor)
    if num_gpus and sum(node.gpus for node in nodes) < 1:
        raise ResourceError(
            f"ray.num_gpus_per_actor={config.num_gpus_per_actor:.4g} asks for a GPU, but Ray has none free; set it to 0, or "
            "declare GPUs with ray.num_gpus"
        )
    cpus = float(threads) if config.num_cpus_per_actor is None else config.num_cpus_per_actor
    if config.actors == "pool":
        return _pool(config, cpus, num_gpus, population, nodes)
    count = population if config.actors == "per_client" else config.actors
    note = ""
    if config.num_cpus_per_actor is None and capacity(nodes, cpus, num_gpus) < count:
        # Asked for more actors than CPUs: let them share, since only the reservation is in the way.
        cpus = _shared_cpus(nodes, count, num_gpus, cpus)
        note = f"{count} actors share {sum(node.cpus for node in nodes):g} CPUs, {cpus:.4g} each"
    fits = capacity(nodes, cpus, num_gpus) if cpus else 0
    if fits < count:
        raise ResourceError(_too_many(config, count, fits, cpus, num_gpus))
    return ActorPlan(count, cpus, num_gpus, config.actors == "per_client", note)


def _pool(
    config: RayConfig, cpus: float, num_gpus: float, population: int, nodes: Sequence[NodeResources]
) -> ActorPlan:
    count = min(capacity(nodes, cpus, num_gpus), population)
    if count < 1:
        free = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "nothing"
        raise ResourceError(
            f"no actor of {cpus:g} CPUs and {num_gpus:g} GPUs fits a node (free: {free}); lower ray.num_cpus_per_actor or "
            "ray.num_gpus_per_actor"
        )
    return ActorPlan(count, cpus, num_gpus, per_client=False)


def _shared_cpus(nodes: Sequence[NodeResources], count: int, num_gpus: float, upper: float) -> float:
    """Return the largest CPU reservation with which ``count`` actors fit, or 0 if no reservation is small enough."""
    parts = range(1, min(20 * count, math.floor(upper / RESOURCE_STEP)) + 1)
    # The smaller the share, the more fit.
    fewest = bisect_left(parts, True, key=lambda n: capacity(nodes, _floor(upper / n), num_gpus) >= count)
    return _floor(upper / parts[fewest]) if fewest < len(parts) else 0.0


def _too_many(config: RayConfig, count: int, fits: int, cpus: float, num_gpus: float) -> str:
    asked = "ray.actors=per_client" if config.actors == "per_client" else f"ray.actors={count}"
    needs = f"{cpus:.4g} CPUs" if cpus else "a share of the CPUs"
    needs += f" and {num_gpus:.4g} GPUs" if num_gpus else ""
    remedy = f"set ray.actors={fits}" if fits else "use ray.actors=pool"
    return (
        f"{asked} needs {count} actors of {needs} each, but only {fits} fit; {remedy}, or lower what an actor reserves"
    )
