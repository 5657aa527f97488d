"""Room for a run's actors on a cluster: all of it, a placement group that the caller made, or one of the run's own."""

from __future__ import annotations

from typing import Any

from ray.util.placement_group import PlacementGroup

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.placement import (
    memory_note,
    memory_of_an_actor,
    node_states,
    on_node,
    place,
    usable_nodes,
)
from fedsim.executors.cluster.sizing import ActorPlan, capacity, plan_actors
from fedsim.executors.config import RayConfig


class Room:
    """Room on the whole cluster: nothing is reserved, and actors take what is free as they start.

    Parameters
    ----------
    actor_bytes
        Main memory that an actor is expected to need; None to reserve none.

    Attributes
    ----------
    plan
        The actors, once they are planned.
    waits_for
        What it is waiting for, for the user; empty if it is not.
    notes
        Messages for the user.
    """

    def __init__(self, config: RayConfig, actor_bytes: int | None = None) -> None:
        self._config = config
        self._actor_bytes = actor_bytes if config.memory == "estimate" else None
        self._places: dict[int, dict[str, Any]] = {}
        self.plan: ActorPlan | None = None
        self.waits_for = ""
        self.notes: list[str] = []

    def reserve(self, threads: int, most: int) -> ActorPlan:
        """Plan the actors, and make room for them.

        Parameters
        ----------
        threads
            CPU threads of an actor.
        most
            Largest number of actors that is of use: the number of clients.

        Raises
        ------
        ResourceError
            If they do not fit; the message says what does.
        """
        states = usable_nodes(self._config)
        free = {node: state.free for node, state in states.items()}
        plan = self._planned(plan_actors(self._config, threads, most, list(free.values())))
        placed = place(plan, free)
        memory = self._memory(placed, {node: state.memory for node, state in states.items()})
        where = {**({"memory": memory} if memory else {}), **self._labels}
        self._places = {slot: {**on_node(node), **where} for slot, node in enumerate(placed)}
        return plan

    def options(self, slot: int) -> dict[str, Any]:
        """Return the options of the actor to create for a slot: its place the first time, then wherever there is room."""
        assert self.plan is not None
        reserved = {"num_cpus": self.plan.num_cpus, "num_gpus": self.plan.num_gpus}
        where = self._places.pop(slot, None)
        return {**reserved, **(self._elsewhere(slot) if where is None else where)}

    def more(self, slots: range) -> int:
        """Make room for actors of further slots, as far as there is any; return for how many."""
        assert self.plan is not None
        free = [state.free for state in self._usable().values()]
        return min(len(slots), capacity(free, self.plan.num_cpus, self.plan.num_gpus))

    def stop(self) -> None:
        """End a wait in :meth:`reserve`, which another thread may be in."""

    def release(self) -> None:
        """Give the room back; may be called twice."""

    @property
    def free(self) -> str:
        """What is free by node, for messages."""
        nodes = [f"{state.free.cpus:g} CPUs and {state.free.gpus:g} GPUs" for state in node_states().values()]
        return f"free by node now: {'; '.join(nodes) or 'nothing'}"

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _elsewhere(self, slot: int) -> dict[str, Any]:
        return {"scheduling_strategy": "SPREAD", **self._labels}

    @property
    def _labels(self) -> dict[str, Any]:
        selector = self._config.selector
        return {"label_selector": selector} if selector else {}

    def _usable(self) -> dict[str, Any]:
        """Return the nodes with the labels that the config names; none if they have gone."""
        if not self._config.selector:
            return node_states()
        try:
            return usable_nodes(self._config)
        except ResourceError:
            return {}

    def _planned(self, plan: ActorPlan) -> ActorPlan:
        self.plan = plan
        return plan

    def _memory(self, placed: list[str], free: dict[str, int]) -> int:
        """Return the bytes that each actor reserves, and note where they are less than it is expected to need."""
        memory = memory_of_an_actor(self._actor_bytes, placed, free)
        if (note := memory_note(self._actor_bytes, memory)) is not None and note not in self.notes:
            self.notes.append(note)
        return memory


def room_for(config: RayConfig, run: str, group: PlacementGroup | None = None, actor_bytes: int | None = None) -> Room:
    """Return the room that ``ray.placement`` asks for; this process is connected to Ray.

    Parameters
    ----------
    run
        Name of the run, for others to see.
    group
        The placement group that the caller is in; see :func:`fedsim.executors.cluster.callers_group.group_of_caller`.
    actor_bytes
        Main memory that an actor is expected to need; None if that is not known.
    """
    from fedsim.executors.cluster.callers_group import CallersGroup
    from fedsim.executors.cluster.own_groups import OwnGroups

    if config.address is None:
        return Room(config)
    if group is not None:
        return CallersGroup(config, group, actor_bytes)
    return Room(config, actor_bytes) if config.placement == "none" else OwnGroups(config, run, actor_bytes)
