"""Schemas of the sections ``evaluation``, ``checkpoint`` and ``stop``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fedsim.core.schema import Schema


class EvaluationConfig(Schema):
    """When and how prompts are evaluated."""

    every: PositiveInt = 1
    """Rounds between evaluations of the global prompt on the validation examples; the last round is always evaluated."""
    personalised_every: PositiveInt | None = None
    """Rounds between personalised evaluations (every client's own prompts on its held-out examples); if not given, once at
    the end."""
    select_on: Literal["validation", "holdout"] = "validation"
    """Examples by which the best round is chosen, and ``stop.target`` and ``stop.patience`` judge: validation, or holdout (the
    examples that clients hold out, read with the global prompt), so that figures on the validation examples are not those of
    a round that was chosen by them."""
    batch_size: PositiveInt = 64
    """Examples in a forward pass."""
    shard_size: PositiveInt = 256
    """Validation examples in one actor call."""
    overlap: bool = True
    """Do the evaluation after a round beside the training of the next one, so that no actor waits for another; the round is
    recorded and saved when it is done. Not where personalised evaluation is due, nor with ``select_on: holdout``. The same
    numbers, and less time."""


class CheckpointConfig(Schema):
    """When the whole state of the run is saved."""

    every: PositiveInt = 1
    """Rounds between checkpoints; an interrupt and the end save as well."""
    keep: PositiveInt = 2
    """Checkpoints to keep; an older one serves if the newest is damaged."""


class StopConfig(Schema):
    """When a run ends before ``rounds``; the summary says by which rule. Resumed with the same rules, it is finished."""

    target: float | None = None
    """Metric that is enough; see ``evaluation.select_on``."""
    patience: PositiveInt | None = None
    """Rounds without a better metric, looked at where a round was evaluated."""
    seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Time that the run takes, its earlier parts included; the round under way is finished."""
    bytes: Annotated[float, Field(gt=0.0)] | None = None
    """Traffic that real devices would have had, up and down and all together."""
