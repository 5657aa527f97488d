"""What is reserved on a cluster, by node and by whom: placement groups by their names, and what has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from fedsim.executors.cluster.ray_internals import available_by_node

OUTSIDE = "outside of placement groups"
_KINDS = ("CPU", "GPU", "memory")
_HELD = ("CREATED", "RESCHEDULING")
_WAITING = ("PENDING", "RESCHEDULING")
"""States of a group of which bundles have no node; one that is rescheduled has lost some."""
_LEAST = 1e-4
"""Ray's resource granularity."""


@dataclass(frozen=True)
class Amounts:
    """CPUs, GPUs and bytes of main memory that Ray counts."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Amounts:
        """Return what a mapping of Ray's has of them; less than Ray counts is nothing."""
        cpus, gpus = (resources.get(kind, 0.0) for kind in ("CPU", "GPU"))
        cpus, gpus = (round(amount, 4) if amount >= _LEAST else 0.0 for amount in (cpus, gpus))
        return cls(cpus, gpus, max(0, round(resources.get("memory", 0.0))))

    def __bool__(self) -> bool:
        return bool(self.cpus or self.gpus or self.memory_bytes)


@dataclass(frozen=True)
class Held:
    """What somebody holds of a node, or waits for."""

    by: str
    """``fedsim/RUN`` of a run of ours, else the name of a placement group, or :data:`OUTSIDE`."""
    state: str
    """State of the groups, as Ray calls it; empty without one."""
    groups: int
    """Placement groups that this is in."""
    amounts: Amounts


@dataclass
class NodeReservations:
    """A node's share of what is reserved."""

    whole: Amounts
    free: Amounts
    held: list[Held] = field(default_factory=list)


@dataclass(frozen=True)
class Reservations:
    """What is reserved on a cluster, and waited for."""

    nodes: dict[str, NodeReservations]
    """By node id."""
    waiting: list[Held]
    """Groups of which Ray has not placed some bundles: these bundles."""
    runs: list[str]
    """Runs of ours with actors that are in no group of the run's own."""


def reservations() -> Reservations:
    """Return what is reserved on the cluster that this process has joined.

    What actors and tasks without a group hold is what is neither free nor a group's: Ray's public API tells no more of it.
    """
    free, tables = available_by_node(), list(placement_group_table().values())
    found = {
        str(node["NodeID"]): _of_node(str(node["NodeID"]), node["Resources"], free.get(node["NodeID"], {}), tables)
        for node in ray.nodes()
        if node["Alive"]
    }
    waiting = _summed(tables, _WAITING, lambda node: not node)
    grouped = {owner(table["name"]) for table in tables if table["state"] != "REMOVED"}
    named = {owner(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)}
    return Reservations(found, waiting, sorted(run for run in named - grouped if run.startswith("fedsim/")))


def owner(name: str) -> str:
    """Return who a placement group or an actor is of, by its name: those of a run are called ``fedsim/RUN/...``."""
    if not name:
        return "a placement group without a name"
    return name.rpartition("/")[0] if name.startswith("fedsim/") and name.count("/") > 1 else name


def _of_node(node: str, whole: Mapping[str, float], free: Mapping[str, float], tables: list[Any]) -> NodeReservations:
    held = _summed(tables, _HELD, lambda where: where == node)
    parts = [[vars(each.amounts)[name] for each in held] for name in ("cpus", "gpus", "memory_bytes")]
    rest = {
        kind: whole.get(kind, 0.0) - free.get(kind, 0.0) - sum(part) for kind, part in zip(_KINDS, parts, strict=True)
    }
    if outside := Amounts.of(rest):
        held.append(Held(OUTSIDE, "", 0, outside))
    return NodeReservations(Amounts.of(whole), Amounts.of(free), held)


def _summed(tables: Iterable[Any], states: tuple[str, ...], counts: Any) -> list[Held]:
    """Return the bundles that lie where ``counts`` says, together for each owner and state."""
    sums: dict[tuple[str, str], list[dict[str, float]]] = {}
    groups: dict[tuple[str, str], int] = {}
    for table in tables:
        if table["state"] not in states:
            continue
        nodes = table.get("bundles_to_node_id") or {}
        bundles = [bundle for index, bundle in table["bundles"].items() if counts(nodes.get(index))]
        if bundles:
            key = (owner(table["name"]), str(table["state"]))
            sums.setdefault(key, []).extend(bundles)
            groups[key] = groups.get(key, 0) + 1
    return [
        Held(
            by, state, groups[by, state], Amounts.of({kind: sum(b.get(kind, 0.0) for b in bundles) for kind in _KINDS})
        )
        for (by, state), bundles in sorted(sums.items())
    ]
