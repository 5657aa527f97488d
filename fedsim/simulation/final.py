"""What is evaluated once, at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedsim.core.messages import Evaluation
from fedsim.core.predictions import Predictions

if TYPE_CHECKING:
    from fedsim.simulation.best_state import BestState
    from fedsim.simulation.config import EvaluationConfig
    from fedsim.simulation.evaluations import Evaluations
    from fedsim.simulation.federation import Federation
    from fedsim.simulation.generations import FinalTexts, Generations


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
    texts: FinalTexts | None = None
    """What the model wrote; None if not asked for."""


def evaluate_end(
    asked: EvaluationConfig,
    evaluations: Evaluations,
    federation: Federation,
    best: BestState,
    generations: Generations | None = None,
) -> FinalEvaluations:
    """Evaluate the states after the last round, and, where asked for, before any training and after the best round."""
    state, states, round = federation.state, federation.clients, federation.round
    clients = evaluations.of_each_client(state, states, round)
    start = evaluations.of_each_fresh_client(federation.initial_state()) if asked.personalised_start else {}
    last = of_best = evaluations.predictions(state, round) if asked.keep_predictions else None
    best_round, best_state = best.latest
    if last is not None and best_round != round:
        of_best = None if best_round is None else evaluations.predictions(best_state, best_round)
    return FinalEvaluations(
        personalised=evaluations.pooled(clients, round),
        clients=clients,
        rounds={client: states.rounds_of(client) for client in clients},
        personalised_start=evaluations.pooled(start, 0),
        clients_start=start,
        predictions=last,
        predictions_best=of_best,
        texts=None if generations is None else generations.at_end(federation),
    )
