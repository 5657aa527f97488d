"""Evaluation of global states and of clients' own prompts: when, and on which examples."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence

from clients.spec import WorkerSpec
from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.core.messages import ClientFailure, ClientState, Evaluation
from fedsim.core.predictions import Predictions
from fedsim.executors.base import Executor, Handle
from fedsim.kept.computed import Computed, evaluation_of, evaluation_record
from fedsim.kept.kept import NO_SLOT
from fedsim.simulation.client_failures import Failures
from fedsim.simulation.open_round import did_not_fit


class Evaluations:
    """Evaluates global states and clients' own prompts, as set in section ``evaluation``.

    Parameters
    ----------
    failures
        Handles client failures.
    note
        Called with messages for the user.
    """

    def __init__(
        self, config: Config, spec: WorkerSpec, executor: Executor, failures: Failures, note: Callable[[str], None]
    ) -> None:
        self._config = config
        self._start = NO_SLOT
        self._executor = executor
        self._failures = failures
        self._note = note
        size, total = config.evaluation.shard_size, len(spec.validation)
        self.shards = [(start, min(start + size, total)) for start in range(0, total, size)]
        """Ranges of validation examples, one actor call each."""
        holding = [client for client in range(spec.shards.num_clients) if len(spec.shards.holdout(client))]
        self._clients = holding
        """Clients with held-out examples."""
        if not holding:
            _refuse_without_held_out(config)

    def is_due(self, round: int) -> bool:
        """Whether the global state is evaluated after a round, counted from 1."""
        return round % self._config.evaluation.every == 0 or round == self._config.rounds

    def of_clients_is_due(self, round: int) -> bool:
        """Whether the clients' own prompts are evaluated after a round."""
        every = self._config.evaluation.personalised_every
        return every is not None and round % every == 0

    def of_holdout_is_due(self, round: int) -> bool:
        """Whether the global state is evaluated on the clients' held-out examples after a round."""
        return self._config.evaluation.select_on == "holdout" and self.is_due(round)

    def can_wait(self, round: int) -> bool:
        """Whether the evaluation due after a round can run while the next round trains."""
        alone = round == self._config.rounds or self.of_clients_is_due(round) or self.of_holdout_is_due(round)
        return self._config.evaluation.overlap and self.is_due(round) and not alone

    def of_state(self, state: Handle, round: int) -> Evaluation:
        """Evaluate a global state on all validation examples."""
        return self.total(self._executor.evaluate(state, self.shards), round)

    def kept_start(self, state: Handle, computed: Computed) -> Evaluation | None:
        """Return the evaluation of the state before any training of an earlier run with the same one; None without."""
        self._start = computed.start(lambda: self._executor.get([state])[0], self.shards)
        return self._start.get(lambda record: evaluation_of(record, computed.prepared.spec.num_classes))

    def keep_start(self, evaluation: Evaluation) -> None:
        """Keep the evaluation that :meth:`kept_start` did not find.

        One with passes that were split for lack of memory is not kept: its last bits are that moment's.
        """
        if not evaluation.memory_splits:
            self._start.put(evaluation_record(evaluation))

    def of_clients(self, state: Handle, states: Mapping[int, Handle], round: int) -> Evaluation | None:
        """Evaluate each client with held-out examples with its own prompts; predictions are pooled, as published.

        Returns
        -------
        Evaluation or None
            None if no client has held-out examples, or if all of them failed and were dropped.
        """
        return self.pooled(self.of_each_client(state, states, round), round)

    def of_each_client(self, state: Handle, states: Mapping[int, Handle], round: int) -> dict[int, Evaluation]:
        """Evaluate each client with held-out examples with its own prompts; without those that failed and were dropped."""
        return self._of_held_out(state, states, round, personal=True)

    def of_each_fresh_client(self, state: Handle) -> dict[int, Evaluation]:
        """Evaluate each client with held-out examples as it is before it ever trains, from the state before any training."""
        return self._of_held_out(state, self._fresh, 0, personal=True)

    def predictions(self, state: Handle, round: int) -> Predictions:
        """Return what a global state predicts for each validation example."""
        found = self.total(self._executor.evaluate(state, self.shards, keep_predictions=True), round).predictions
        assert found is not None, "they were asked for"
        return found

    def of_holdout(self, state: Handle, round: int) -> Evaluation | None:
        """Evaluate a global state on all clients' held-out examples; None if all clients failed and were dropped."""
        return self.pooled(self._of_held_out(state, self._fresh, round, personal=False), round)

    @property
    def _fresh(self) -> dict[int, ClientState]:
        return {client: ClientState(client) for client in self._clients}

    def _of_held_out(
        self, state: Handle, states: Mapping[int, Handle], round: int, personal: bool
    ) -> dict[int, Evaluation]:
        clients = self._clients
        size = 1 if self._executor.per_client else 4 * self._config.group_size
        groups = [tuple(clients[start : start + size]) for start in range(0, len(clients), size)]
        results = self._executor.evaluate_clients(state, groups, states, personal) if groups else []
        by_client = dict(zip(clients, results, strict=True))
        failed = {client: result for client, result in by_client.items() if isinstance(result, ClientFailure)}
        self._failures.of_evaluation(round, failed)
        return {client: result for client, result in by_client.items() if isinstance(result, Evaluation)}

    def pooled(self, by_client: Mapping[int, Evaluation], round: int) -> Evaluation | None:
        """Add up the evaluations of clients; None if there are none."""
        return self.total(list(by_client.values()), round) if by_client else None

    def total(self, evaluations: Sequence[Evaluation], round: int) -> Evaluation:
        """Add up evaluations."""
        total = functools.reduce(operator.add, evaluations)
        if total.memory_splits:
            self._note(
                f"warning: evaluation after round {round}: {did_not_fit(total.memory_splits)}; set "
                f"evaluation.batch_size to less than {self._config.evaluation.batch_size}"
            )
        return total


def _refuse_without_held_out(config: Config) -> None:
    """Refuse what needs held-out examples where no client has any."""
    keys = {
        "evaluation.select_on=holdout": config.evaluation.select_on == "holdout",
        "evaluation.personalised_start=true": config.evaluation.personalised_start,
    }
    if asked := [key for key, is_asked in keys.items() if is_asked]:
        raise ConfigError(
            f"{asked[0]} needs held-out examples, but no client has enough examples to hold one out at "
            f"partition.holdout_fraction={config.partition.holdout_fraction:g}; raise it, or leave {asked[0]} out"
        )
