"""Room in a placement group that the caller made: a Tune trial's, a Train worker's, or that of any other task or actor."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.placement import in_bundle, on_node, place, usable_nodes, written
from fedsim.executors.cluster.rooms import Room
from fedsim.executors.cluster.sizing import ActorPlan, NodeResources, plan_actors
from fedsim.executors.config import RayConfig

_SYNC_SECONDS = 10.0
"""Ray tells of a new group's free resources within a second."""


class CallersGroup(Room):
    """Room in what the bundles of a placement group have free: the caller itself holds a part of them."""

    def __init__(self, config: RayConfig, group: PlacementGroup, actor_bytes: int | None = None) -> None:
        super().__init__(config, actor_bytes)
        self._group = group
        self._bundle_of: dict[int, int] = {}

    def reserve(self, threads: int, most: int) -> ActorPlan:
        """Plan the actors for what the bundles have free."""
        free = self._bundles()  # which refuses labels that no bundle's node has
        try:
            # A bundle is on one node, as an actor is.
            plan = self._planned(plan_actors(self._config, threads, most, list(free.values())))
        except ResourceError as error:
            raise ResourceError(self._refusal(error, threads, most)) from None
        placed = place(plan, free)
        self._bundle_of = {slot: int(key) for slot, key in enumerate(placed)}
        rest = self._rest()
        memory = self._memory(placed, {key: int(rest.get(f"memory_group_{int(key)}_{self._id}", 0)) for key in free})
        self._places = {
            slot: {**in_bundle(self._group, int(key)), **({"memory": memory} if memory else {})}
            for slot, key in enumerate(placed)
        }
        return plan

    def more(self, slots: range) -> int:
        """Make no room: a group has what it has."""
        return 0

    @property
    def free(self) -> str:
        """What is free by bundle, for messages."""
        return f"free in the bundles of the placement group now: {_told(self._bundles())}"

    def _elsewhere(self, slot: int) -> dict[str, Any]:
        # Of a group that is only in part on nodes with the labels, an actor stays in the bundle that it was given.
        return in_bundle(self._group, self._bundle_of[slot] if self._config.selector else -1)

    def _memory(self, placed: list[str], free: dict[str, int]) -> int:
        # Bundles without memory have none to reserve, which is the caller's choice.
        return super()._memory(placed, free) if any("memory" in bundle for bundle in self._group.bundle_specs) else 0

    @property
    def _id(self) -> str:
        return str(self._group.id.hex())

    def _rest(self) -> dict[str, float]:
        """Return what Ray has free, once it tells of this group."""
        deadline = time.monotonic() + _SYNC_SECONDS
        last = f"bundle_group_{len(self._group.bundle_specs) - 1}_{self._id}"
        while last not in (rest := ray.available_resources()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return dict(rest)

    def _bundles(self) -> dict[str, NodeResources]:
        """Return what is free in each bundle, by its number; as text that sorts by number."""
        rest, found = self._rest(), {}
        for index in range(len(self._group.bundle_specs)):
            cpus, gpus = (rest.get(f"{name}_group_{index}_{self._id}", 0.0) for name in ("CPU", "GPU"))
            # A bundle with less than one GPU has it of a single GPU.
            part = gpus if 0 < self._group.bundle_specs[index].get("GPU", 0) < 1 else 0.0
            found[f"{index:06d}"] = NodeResources(cpus, gpus, part)
        return self._with_labels(self._without_caller(found))

    def _with_labels(self, found: dict[str, NodeResources]) -> dict[str, NodeResources]:
        if not self._config.selector:
            return found
        nodes = placement_group_table(self._group)["bundles_to_node_id"]
        return on_nodes(found, nodes, usable_nodes(self._config), written(self._config))

    def _without_caller(self, found: dict[str, NodeResources]) -> dict[str, NodeResources]:
        """Take off the caller's own CPUs, which Ray calls free whenever the caller waits for something.

        Ray does not tell which bundle they are in: the first one on the caller's node that has them.
        """
        own, here = _own_cpus(), ray.get_runtime_context().get_node_id()
        whole = sum(bundle.get("CPU", 0.0) for bundle in self._group.bundle_specs)
        if not own or sum(free.cpus for free in found.values()) + own <= whole:
            return found
        nodes = placement_group_table(self._group)["bundles_to_node_id"]
        for index, node in sorted(nodes.items()):
            key = f"{index:06d}"
            if node == here and found[key].cpus >= own:
                return {**found, key: replace(found[key], cpus=found[key].cpus - own)}
        return found

    def _refusal(self, error: ResourceError, threads: int, most: int) -> str:
        config = self._config
        count = {"pool": 1, "per_client": most}.get(str(config.actors), config.actors)
        cpus = threads if config.num_cpus_per_actor is None else config.num_cpus_per_actor
        gpu = f", 'GPU': {config.num_gpus_per_actor:.4g}" if config.num_gpus_per_actor else ""
        bundles = ", ".join(_bundle(bundle) for bundle in self._group.bundle_specs)
        return (
            f"this run is inside a placement group with the bundles [{bundles}], of which {_told(self._bundles())} are free "
            f"for actors: {error}; or give the group {count} more bundle{'' if count == 1 else 's'} of "
            f"{{'CPU': {cpus:g}{gpu}}} (in Tune: fedsim.tune.resources), or set executor=local"
        )


def on_nodes(
    found: dict[str, NodeResources], nodes: Mapping[int, str], usable: Collection[str], labels: str
) -> dict[str, NodeResources]:
    """Return the bundles, of all that are found, that are on usable nodes.

    Parameters
    ----------
    nodes
        Node id of each bundle, by its number.
    labels
        What the config says of the nodes' labels.

    Raises
    ------
    ResourceError
        If there is none.
    """
    left = {key: free for key, free in found.items() if nodes.get(int(key)) in usable}
    if not left:
        raise ResourceError(
            f"this run is inside a placement group of which no bundle is on a node with {labels}; make the group with "
            "bundle_label_selector (in Tune: fedsim.tune.resources does), or leave the labels out"
        )
    return left


def _own_cpus() -> float:
    """Return the CPUs of this task or actor; 0 for a driver, of which Ray tells nothing."""
    try:
        return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))
    except AssertionError:
        return 0.0


def group_of_caller(config: RayConfig) -> PlacementGroup | None:
    """Return the placement group in which a run's actors are to be: that of this task or actor.

    Of a task, only its own thread knows it.
    """
    inside = config.address is not None and config.placement == "auto" and ray.is_initialized()
    return ray.util.get_current_placement_group() if inside else None


def beside_driver(group: PlacementGroup | None) -> dict[str, Any]:
    """Return the options of an actor that reserves nothing and is to be on the driver's node, in its placement group if any."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {} if group is None else placement_group_table(group)["bundles_to_node_id"]
    own = next((index for index, node in nodes.items() if node == here), None)
    return on_node(here) if group is None or own is None else in_bundle(group, own)


def _bundle(bundle: dict[str, float]) -> str:
    return "{" + ", ".join(f"'{name}': {amount:g}" for name, amount in bundle.items()) + "}"


def _told(bundles: dict[str, NodeResources]) -> str:
    gpus = any(free.gpus for free in bundles.values())
    return ", ".join(f"{free.cpus:g} CPUs{f' and {free.gpus:g} GPUs' if gpus else ''}" for free in bundles.values())
