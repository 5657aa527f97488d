"""What happens when: the visits of every server step, known before anything is trained.

A schedule depends on the config, the seed and the devices (with selection by utility also on the losses of earlier steps), so
it is the same for every executor, number of actors, kill and resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from fedsim.core.messages import ClientReport


@dataclass(frozen=True)
class Visit:
    """One client's local training, from the server's broadcast to the arrival of its result."""

    client: int
    version: int
    """Server steps done when it began."""
    began_seconds: float | None = None
    """On the virtual clock; None without one."""
    arrived_seconds: float | None = None
    """On the virtual clock; of a client that went out of reach, when it did."""
    drawn_seconds: float | None = None
    """When the client was drawn: it begins as soon as it is in reach."""
    missed: int | None = None
    """Server steps from the start of the client's last visit to that of this one; None for its first."""
    outcome: Literal["taken", "late", "absent"] = "taken"
    """Whether a step takes in its result, or why none does."""


@dataclass(frozen=True)
class Step:
    """One server step: the visits that it takes in, and the clients that it does without."""

    number: int
    """Counted from 0."""
    visits: tuple[Visit, ...]
    """Visits whose results the step takes in, in draw order."""
    absent: tuple[int, ...] = ()
    """Drawn, but out of reach, from the start or before their result had arrived."""
    late: tuple[int, ...] = ()
    """Drawn and in reach, but not in time."""
    too_small: tuple[int, ...] = ()
    """Never drawn, because their device cannot hold the model."""
    began_seconds: float | None = None
    """On the virtual clock; None without one, as all that follows."""
    ended_seconds: float | None = None
    waited_seconds: float | None = None
    """How long the last client of the cohort was waited for until it could begin."""
    seconds: float | None = None
    """Length of the step."""
    aside: tuple[Visit, ...] = ()
    """Visits of simulated devices that no step takes in: lost since the step before, or late for this one."""

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients whose results the step takes in, in draw order."""
        return tuple(visit.client for visit in self.visits)


class Schedule(Protocol):
    """The visits of all server steps."""

    def step(self, number: int) -> Step:
        """Return a step, counted from 0: always the same, in whatever order steps are asked for."""
        ...

    def learn(self, number: int, reports: Iterable[ClientReport]) -> None:
        """Take in what the clients of a step reported, if later steps depend on it; before any of these is asked for."""
        ...
