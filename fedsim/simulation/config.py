"""Schemas of the sections ``evaluation`` and ``checkpoint``."""

from __future__ import annotations

from pydantic import PositiveInt

from fedsim.core.schema import Schema


class EvaluationConfig(Schema):
    """When and how prompts are evaluated."""

    every: PositiveInt = 1
    """Rounds between evaluations of the global prompt on the validation examples; the last round is always evaluated."""
    personalised_every: PositiveInt | None = None
    """Rounds between personalised evaluations (every client's own prompts on its held-out examples); if not given, once at
    the end."""
    batch_size: PositiveInt = 64
    """Examples in a forward pass."""
    shard_size: PositiveInt = 256
    """Validation examples in one actor call."""
    overlap: bool = True
    """Do the evaluation after a round beside the training of the next one, so that no actor waits for another; the round is
    recorded and saved when it is done. Not where personalised evaluation is due. The same numbers, and less time."""


class CheckpointConfig(Schema):
    """When the whole state of the run is saved."""

    every: PositiveInt = 1
    """Rounds between checkpoints; an interrupt and the end save as well."""
    keep: PositiveInt = 2
    """Checkpoints to keep; an older one serves if the newest is damaged."""
