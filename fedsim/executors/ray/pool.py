"""The pool of client actors: ready, starting, and replacements of lost ones.

A starting actor has no calls: ready ones take them meanwhile. One that cannot be placed, because its node is
gone and there is no room elsewhere, is given up after ``ray.start_timeout_seconds``, and the others continue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ClientError, ResourceError
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.failures import SYSTEM_ERRORS, ray_error, reason, task_error


@dataclass(frozen=True)
class _Start:
    slot: int
    since: float


class ActorPool:
    """Client actors by slot.

    Parameters
    ----------
    create
        Creates the actor of a slot, which builds its worker as soon as it is placed.
    note
        Called with messages for the user.
    """

    def __init__(self, config: RayConfig, create: Callable[[int], Any], note: Callable[[str], None]) -> None:
        self._config = config
        self._create = create
        self._note = note
        self._actors: dict[int, Any] = {}
        self._starting: dict[ray.ObjectRef, _Start] = {}
        self._failed_starts = 0
        self.replaced = 0
        """Actors replaced so far: lost, or killed because they timed out."""
        self.nodes: dict[int, str] = {}
        """Node of each actor that is ready."""

    def __len__(self) -> int:
        return len(self._actors)

    def add(self, slot: int, actor: Any, node: str) -> None:
        """Add a ready actor."""
        self._actors[slot], self.nodes[slot] = actor, node

    def grow(self, count: int) -> None:
        """Start more actors; they get calls as soon as they are ready."""
        for slot in self.next_slots(count):
            self._start(slot)

    def next_slots(self, count: int) -> range:
        """Return the slots that :meth:`grow` fills."""
        first = max(self._actors, default=-1) + 1
        return range(first, first + count)

    @property
    def ready(self) -> dict[int, Any]:
        """Actors that can be called, by slot."""
        return {slot: self._actors[slot] for slot in self.nodes}

    @property
    def slots(self) -> Iterable[int]:
        """Slots of all actors, ready and starting."""
        return self._actors.keys()

    @property
    def actors(self) -> list[Any]:
        """All actors, ready and starting."""
        return list(self._actors.values())

    @property
    def starting(self) -> list[ray.ObjectRef]:
        """References that resolve when a starting actor is ready; pass resolved ones to :meth:`admit`."""
        return list(self._starting)

    def replace(self, slot: int) -> None:
        """Kill what is left of an actor and start a replacement."""
        # Killed even if it seems dead: one that was only unreachable would hold its CPUs forever.
        ray.kill(self._actors[slot], no_restart=True)
        self.replaced += 1
        self._start(slot)

    def admit(self, arrived: Iterable[ray.ObjectRef]) -> None:
        """Mark actors whose references resolved as ready; restart those that were lost while starting."""
        for ref in arrived:
            start = self._starting.pop(ref, None)
            if start is None:
                continue
            try:
                self.nodes[start.slot] = ray.get(ref).node_id
            except ray_errors.RayTaskError as error:
                self._forget(start.slot)
                raise task_error(f"the start of actor {start.slot}", error) from error
            except SYSTEM_ERRORS as error:
                self._start_again(start.slot, error)
            except ray_errors.RayError as error:
                self._forget(start.slot)
                raise ray_error(f"the start of actor {start.slot}", error) from error
            else:
                self._failed_starts = 0

    def expire(self) -> None:
        """Give up actors that were not ready in time.

        Raises
        ------
        ResourceError
            If no actor is left.
        """
        limit = self._config.start_timeout_seconds
        for ref, start in list(self._starting.items()):
            if time.monotonic() - start.since < limit:
                continue
            del self._starting[ref]
            self._forget(start.slot)
            if not self._actors:
                raise ResourceError(
                    f"waited {limit:g} s (ray.start_timeout_seconds) for an actor to replace a lost one, and there is no "
                    "other; the cluster may have lost the node that had room for it"
                )
            self._note(
                f"warning: actor {start.slot} found no room within {limit:g} s (ray.start_timeout_seconds); going on with "
                f"{len(self._actors)}"
            )

    def _start_again(self, slot: int, error: Exception) -> None:
        self._failed_starts += 1
        if getattr(error, "actor_init_failed", False) and self._failed_starts > 1:
            # Once may be bad luck, such as GPU memory that its predecessor still held; twice is not.
            self._forget(slot)
            raise ClientError(f"actor {slot} cannot start:\n{error}") from error
        if self._failed_starts > self._config.max_replacements:
            self._forget(slot)
            raise ResourceError(
                f"actor {slot} was lost while it started ({reason(error)}), after {self._failed_starts - 1} others; see "
                "ray.max_replacements, and memory if the system killed them"
            ) from error
        self.replace(slot)

    def _forget(self, slot: int) -> None:
        self.nodes.pop(slot, None)
        ray.kill(self._actors.pop(slot), no_restart=True)

    def close(self) -> None:
        """Kill all actors."""
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._starting.clear()
        self.nodes.clear()

    def _start(self, slot: int) -> None:
        self.nodes.pop(slot, None)
        actor = self._create(slot)
        self._actors[slot] = actor
        self._starting[actor.info.remote()] = _Start(slot, time.monotonic())
