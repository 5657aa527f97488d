"""What the driver of many runs and its actors tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.core.plugin_source import Plugin


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """What it is called in messages."""
    values: dict[str, Any]
    """Its config, nested, without ``output``."""
    folder: str
    """Where it goes, a full path."""
    rounds: int
    """How many it has, for the progress display."""
    weights: str
    """What its frozen weights depend on; jobs with the same share them."""
    plugins: tuple[Plugin, ...] = ()
    """Loaded before the config is read."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    job: Job
    sentence: str | None = None
    """Why it failed; None if it is finished."""
    notes: tuple[str, ...] = ()
    """Messages of the run for the user."""
    packed: bytes | None = None
    """The run's folder as a tar archive, if the actor does not see the driver's folders."""


@dataclass(frozen=True)
class Doing:
    """What an actor is doing."""

    job: str
    """Name of its job; empty without one."""
    round: int
    """Rounds that are done."""


NOTHING = Doing("", 0)
