"""What is evaluated once, at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsim.core.messages import Evaluation
from fedsim.core.predictions import Predictions


@dataclass(frozen=True)
class FinalEvaluations:
    """The evaluations at the end of a run."""

    personalised: Evaluation | None
    """Clients' own prompts on their held-out examples, pooled; None if no client has such examples."""
    clients: Mapping[int, Evaluation]
    """The same by client, ascending; without clients that failed and were dropped."""
    rounds: Mapping[int, int]
    """Rounds in which each of these clients trained."""
    personalised_start: Evaluation | None = None
    """The held-out examples with the prompts before any training, pooled; None if not asked for."""
    clients_start: Mapping[int, Evaluation] = field(default_factory=dict)
    """The same by client."""
    predictions: Predictions | None = None
    """Of the global prompt for the validation examples, after the last round; None if not asked for."""
    predictions_best: Predictions | None = None
    """The same after the best round; None if no round was evaluated."""
