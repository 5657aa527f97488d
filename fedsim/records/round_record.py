"""The record of a round."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fedsim.records.columns import TEXT_METRIC_WORDS


@dataclass(frozen=True)
class RoundRecord:
    """The record of a round: a row of ``rounds.parquet``; see its columns for the meaning of each field.

    Values that were not measured are None: metrics of a round without evaluation, times without a simulation.
    """

    round: int
    """Counted from 1."""
    global_metric: float | None
    global_loss: float | None
    personalised_metric: float | None
    personalised_loss: float | None
    holdout_metric: float | None
    holdout_loss: float | None
    train_loss_first: float | None
    train_loss_last: float | None
    server_lr: float
    clients_ok: int
    clients_failed: int
    clients_absent: int
    clients_late: int
    clients_too_small: int | None
    staleness_mean: float | None
    staleness_max: int | None
    clients_retried: int
    client_examples: int
    client_steps: int
    bytes_down: int
    bytes_up: int
    seconds_longest_client: float
    seconds_simulated: float | None
    seconds_waited: float | None
    clock_seconds: float | None
    seconds_round: float
    seconds_train: float
    seconds_server: float
    seconds_evaluate: float
    actors_replaced: int
    update_norm: float
    """L2 norm of the server's step; only in the event of the round."""
    epsilon: float | None = None
    clip_norm: float | None = None
    clip_share: float | None = None
    generated_exact_match: float | None = None
    generated_f1: float | None = None
    generated_rouge1: float | None = None
    generated_rouge2: float | None = None
    generated_rougeL: float | None = None
    generated_chrf: float | None = None

    @property
    def metric(self) -> float | None:
        """The global metric."""
        return self.global_metric

    @property
    def written(self) -> dict[str, float]:
        """Metrics of what the global model wrote after the round, by name; empty if it did not."""
        columns = {name: getattr(self, f"generated_{name}") for name in TEXT_METRIC_WORDS}
        return {name: value for name, value in columns.items() if value is not None}

    @property
    def loss(self) -> float | None:
        """The global loss."""
        return self.global_loss

    @property
    def seconds(self) -> float:
        """Wall time of the round."""
        return self.seconds_round

    def event(self) -> dict[str, Any]:
        """Return the fields of the event ``round``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def row(self) -> dict[str, Any]:
        """Return the row of ``rounds.parquet``."""
        row = self.event()
        del row["update_norm"]
        return row
