"""Choice of ``client.fuse``: how many clients share passes through the backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.core.memory import free_memory_bytes
from fedsim.core.messages import ClientFailure, FuseTrial
from fedsim.executors.base import Executor, Handle
from fedsim.kept.computed import trial_of, trial_record
from fedsim.kept.kept import NO_SLOT, Slot

_SLOWER = 1.1
"""Passes are shared unless that takes more than this factor of the time of separate passes. The margin keeps noise from
deciding, because the choice affects the last bits of results."""
_NO_MEMORY = "more clients would need too much memory"
_MEMORY_SHARE = 0.5
"""Fraction of a worker's share of free memory that its clients' vectors may take."""


@dataclass(frozen=True)
class FuseChoice:
    """The number chosen, and why."""

    fuse: int
    reason: str
    trial: FuseTrial | None = None

    def record(self) -> dict[str, Any]:
        """Return the event of the choice."""
        return {"fuse": self.fuse, "reason": self.reason, **({} if self.trial is None else asdict(self.trial))}


def choose_fuse(
    config: Config,
    executor: Executor,
    state: Handle,
    clients: tuple[int, ...],
    workers: int,
    kept: int | None,
    slot: Slot = NO_SLOT,
) -> FuseChoice:
    """Return how many clients of a work group train together.

    Parameters
    ----------
    state
        Handle of the global state that the trial starts from.
    clients
        Work group for the trial.
    workers
        Workers that share this machine's memory.
    kept
        The number used in an earlier part of the run.
    slot
        Where the trial of an earlier run is, so that the same work is done with the same number, to the same bits.

    Raises
    ------
    ConfigError
        If the number requested is not possible, or differs from that of the earlier part.
    """
    asked = config.client.fuse
    _check(config, executor, kept)
    if asked == "off":
        return FuseChoice(1, "as client.fuse asks")
    if config.client.dropout:
        return FuseChoice(1, "with client.dropout clients train one by one")
    if executor.per_client:
        return FuseChoice(1, "every client has an actor of its own")
    if isinstance(asked, int):
        return FuseChoice(asked, "as client.fuse asks")
    if kept is not None:
        return FuseChoice(kept, "as in the earlier part of the run")
    if len(clients) < 2:
        return FuseChoice(1, "a work group is one client")
    if (earlier := _earlier(slot, len(clients), workers)) is not None:
        return earlier
    trial = executor.try_fusing(state, clients)
    if isinstance(trial, ClientFailure):
        return FuseChoice(len(clients), f"a whole work group; a trial failed: {trial.message}")
    choice = _judge(trial, workers)
    if choice.reason != _NO_MEMORY:  # memory is that moment's
        slot.put(trial_record(trial))
    return choice


def _earlier(slot: Slot, clients: int, workers: int) -> FuseChoice | None:
    """Return the choice after an earlier run's trial, unless there was none or its answer needs more memory than is free."""
    trial = slot.get(trial_of)
    if trial is None or trial.clients != clients:
        return None
    free = [number for number in (trial.bytes_free, free_memory_bytes()) if number is not None]
    choice = _judge(replace(trial, bytes_free=min(free, default=None)), workers)
    if choice.reason == _NO_MEMORY:
        return None
    return FuseChoice(choice.fuse, f"{choice.reason}, in an earlier run", trial)


def _check(config: Config, executor: Executor, kept: int | None) -> None:
    asked = config.client.fuse
    if asked == "auto":
        return
    number = 1 if asked == "off" else asked
    if executor.per_client and number > 1:
        raise ConfigError(
            f"client.fuse={number} needs clients that share an actor, but ray.actors is per_client; set client.fuse=off, or "
            "ray.actors=pool"
        )
    if kept is not None and kept != number:
        raise ConfigError(
            f"the run to resume has client.fuse={'off' if kept == 1 else kept}, not {asked}, which would change the last bits "
            "of its results; give the same value, or auto"
        )


def with_fuse(config: Config, fuse: int) -> Config:
    """Return the config with the number chosen, so that a repeat from the recorded config gives the same bits."""
    asked: int | str = fuse if fuse > 1 else "off"
    return config.model_copy(update={"client": config.client.model_copy(update={"fuse": asked})})


def _judge(trial: FuseTrial, workers: int) -> FuseChoice:
    if trial.seconds_together > _SLOWER * trial.seconds_alone:
        return FuseChoice(1, "a trial took longer with shared passes", trial)
    if trial.bytes_free is not None:
        fits = int(_MEMORY_SHARE * trial.bytes_free / workers / max(1, trial.bytes_per_client))
        if fits < trial.clients:
            return FuseChoice(max(1, fits), _NO_MEMORY, trial)
    return FuseChoice(trial.clients, "a whole work group", trial)
