"""Room in placement groups of the run's own: all actors are reserved at once, so that two runs do not each take half.

A run waits while others hold what it needs. Ray removes the groups with the job that made them, also if that is killed, and
places the bundles of a lost node again where there is room.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from fedsim.core.errors import ResourceError, listed
from fedsim.executors.cluster.placement import NodeState, in_bundle, place, usable_nodes
from fedsim.executors.cluster.rooms import Room
from fedsim.executors.cluster.sizing import ActorPlan, NodeResources, capacity, plan_actors
from fedsim.executors.config import RayConfig

_PLACED_SECONDS = 5.0
"""Time in which Ray places a group for which there is room."""
_QUIET_SECONDS = 3.0
"""Time after which a group for which there seemed to be room is spoken of."""
_LOOK_SECONDS = 0.25
_WAIT_KEY = "ray.wait_timeout_seconds"


class OwnGroups(Room):
    """Room in placement groups that this run makes and removes.

    Parameters
    ----------
    run
        Name of the run: groups are called by it.
    """

    def __init__(self, config: RayConfig, run: str, actor_bytes: int | None = None) -> None:
        super().__init__(config, actor_bytes)
        self._name = f"fedsim/{run}/{secrets.token_hex(4)}"
        self._groups: list[PlacementGroup] = []
        self._group_of: dict[int, PlacementGroup] = {}
        self._stopped = threading.Event()

    def reserve(self, threads: int, most: int) -> ActorPlan:
        """Plan the actors, and wait until a placement group has room for all of them."""
        started, patience = time.monotonic(), _PLACED_SECONDS
        while True:
            states = usable_nodes(self._config)
            plan, has_room = self._wanted(threads, most, states)
            self._planned(plan)
            group = self._made(range(plan.count), plan, states, has_room)
            # Where there was room, another run was faster if the group is not placed at once; then there may be less.
            if self._placed(group, patience if has_room else None, started):
                break
            self._remove(group)
            patience *= 2  # or the cluster is slow
        self.waits_for = ""
        if not has_room and self._config.actors == "pool":
            # One actor's room was waited for; as many as fit are what is asked for.
            self._planned(replace(plan, count=1 + self.more(range(1, most))))
        assert self.plan is not None
        return self.plan

    def more(self, slots: range) -> int:
        """Make room for further actors, unless others wait for theirs."""
        assert self.plan is not None
        states = self._usable()
        number = min(len(slots), capacity(_free(states), self.plan.num_cpus, self.plan.num_gpus))
        if number < 1 or self._others_wait():
            return 0
        plan = replace(self.plan, count=number)
        group = self._made(slots[:number], plan, states, has_room=True)
        if group.wait(_PLACED_SECONDS):
            return number
        self._remove(group)
        return 0

    def stop(self) -> None:
        """End the wait in :meth:`reserve`."""
        self._stopped.set()

    def release(self) -> None:
        """Remove all groups; what runs in them ends."""
        for group in list(self._groups):
            self._remove(group)

    def _elsewhere(self, slot: int) -> dict[str, Any]:
        return in_bundle(self._group_of[slot], -1)

    def _others_wait(self) -> bool:
        return any(
            table["state"] in ("PENDING", "RESCHEDULING") and not table["name"].startswith(self._name)
            for table in placement_group_table().values()
        )

    # -- planning ----------------------------------------------------------------------------------------------------

    def _wanted(self, threads: int, most: int, states: dict[str, NodeState]) -> tuple[ActorPlan, bool]:
        """Return the actors to make room for, and whether there is room now.

        Raises
        ------
        ResourceError
            If there would be none on an empty cluster either.
        """
        try:
            return plan_actors(self._config, threads, most, _free(states)), True
        except ResourceError:
            plan = plan_actors(self._config, threads, most, [state.whole for state in states.values()])
        return (replace(plan, count=1) if self._config.actors == "pool" else plan), False

    # -- groups ------------------------------------------------------------------------------------------------------

    def _made(
        self, slots: Sequence[int], plan: ActorPlan, states: dict[str, NodeState], has_room: bool
    ) -> PlacementGroup:
        """Ask for a group with room for actors."""
        # An arrangement that is possible, which Ray need not follow.
        nodes = place(plan, {node: state.free if has_room else state.whole for node, state in states.items()})
        # What comes free is not known: a run that waits reserves no memory, so that it waits for nothing else.
        memory = self._memory(nodes, {node: state.memory for node, state in states.items()}) if has_room else 0
        counts = bundle_counts(nodes, plan.num_gpus)
        selector = self._config.selector
        group = placement_group(
            [self._bundle(count, memory) for count in counts],
            strategy="SPREAD",
            name=f"{self._name}-{len(self._groups)}",
            **({"bundle_label_selector": [selector] * len(counts)} if selector else {}),
        )
        self._groups.append(group)
        where = (index for index, count in enumerate(counts) for _ in range(count))
        for slot, index in zip(slots, where, strict=True):
            self._places[slot] = {**in_bundle(group, index), **({"memory": memory} if memory else {})}
            self._group_of[slot] = group
        return group

    def _bundle(self, actors: int, memory: int) -> dict[str, float]:
        assert self.plan is not None
        amounts = {"CPU": self.plan.num_cpus * actors, "memory": memory * actors}
        if share := self.plan.num_gpus:
            # Shares are rounded down: as many as a GPU has are a whole one. GPUs of an actor are in one bundle, so on one node.
            amounts["GPU"] = 1.0 if share <= 1 and actors == _parts(share) else share * actors
        return {name: amount for name, amount in amounts.items() if amount}

    def _remove(self, group: PlacementGroup) -> None:
        self._groups.remove(group)
        remove_placement_group(group)

    def _placed(self, group: PlacementGroup, patience_seconds: float | None, started: float) -> bool:
        """Wait until a group is placed; return whether it is, within the time after which to plan anew.

        Raises
        ------
        ResourceError
            After ``ray.wait_timeout_seconds``, or if the run stops.
        """
        asked, limit = time.monotonic(), self._config.wait_timeout_seconds
        while not group.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if self._stopped.is_set():
                raise ResourceError("the run was stopped while it waited for room on the cluster")
            if patience_seconds is None or now - asked > _QUIET_SECONDS:
                self.waits_for = self._waited_for()
            if limit is not None and now - started > limit:
                raise ResourceError(f"waited {limit:g} s ({_WAIT_KEY}): {self._waited_for()}")
            if patience_seconds is not None and now - asked > patience_seconds:
                return False
        return True

    def _waited_for(self) -> str:
        assert self.plan is not None
        plan, states = self.plan, self._usable().values()
        gpu = f" and {plan.num_gpus:.4g} GPUs" if plan.num_gpus else ""
        has = [f"{sum(s.free.cpus for s in states):g} of {sum(s.whole.cpus for s in states):g} CPUs"]
        if plan.num_gpus:
            has.append(f"{sum(s.free.gpus for s in states):g} of {sum(s.whole.gpus for s in states):g} GPUs")
        what = f"{plan.count} actors" if plan.count > 1 else "an actor"
        return (
            f"waiting for room on the cluster for {what} ({plan.num_cpus:.4g} CPUs{gpu} each); {' and '.join(has)} are free"
            f"{self._holders()}"
        )

    def _holders(self) -> str:
        tables = [table for table in placement_group_table().values() if table["state"] == "CREATED"]
        names = sorted({table["name"] for table in tables if table["name"]})
        return f", others are held by {listed(names, 5)}" if names else ""


def bundle_counts(nodes: Sequence[str], share: float) -> list[int]:
    """Return how many actors each bundle is for: one, or as many as share a GPU on the same node.

    A bundle of whole shares is a whole GPU; Ray does not tell bundles with parts of a GPU apart on every version.
    """
    if not share:
        return [1] * len(nodes)
    counts = []
    for node in dict.fromkeys(nodes):
        actors = sum(each == node for each in nodes)
        whole, rest = divmod(actors, _parts(share))
        counts += [_parts(share)] * whole + ([rest] if rest else [])
    return counts


def _parts(share: float) -> int:
    return max(1, int(1 / share + 1e-6))


def _free(states: dict[str, NodeState]) -> list[NodeResources]:
    return [state.free for state in states.values()]
