"""Running figures of a run's summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedsim.core.messages import ClientReport
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.open_round import usable_reports


@dataclass
class Totals:
    """Running figures of the summary; part of every checkpoint, so a resumed run ends with the same figures."""

    client_updates: int = 0
    client_failures: int = 0
    client_steps: int = 0
    client_tokens: int = 0
    """Tokens that clients trained on."""
    client_slots: int = 0
    """Tokens that attention computed for them, padding included."""
    bytes_up: int = 0
    bytes_down: int = 0
    initial_metric: float = math.nan
    global_metric: float = math.nan
    initial_loss: float = math.nan
    global_loss: float = math.nan
    best_global_metric: float = math.nan
    best_global_round: int | None = None
    """The first round with the best metric, counted from 1."""
    judged_round: int = 0
    """The last round evaluated on the examples of ``evaluation.select_on``."""
    selected_round: int | None = None
    """The first round with the best metric on these examples."""
    selected_metric: float = math.nan
    """That metric."""
    selected_global_metric: float = math.nan
    """The metric on the validation examples after that round."""
    written: dict[str, list[float]] = field(default_factory=dict)
    """By metric of what the global model wrote in rounds: the best, the first round with it, the last round with any."""
    best_personalised_metric: float = math.nan
    """Over the rounds with a personalised evaluation."""
    best_personalised_round: int | None = None
    seconds_longest_clients: float = 0.0
    """Sum over rounds of the longest local training."""
    clock_seconds: float | None = None
    """The virtual clock, where there is one."""
    seconds_rounds: list[float] = field(default_factory=list)
    seconds_before: float = 0.0
    """Seconds of this run's earlier, interrupted parts."""

    def anew(self) -> Totals:
        """Return the figures of a run that starts over after the evaluation of its initial state."""
        return Totals(
            initial_metric=self.initial_metric,
            global_metric=self.initial_metric,
            initial_loss=self.initial_loss,
            global_loss=self.initial_loss,
            seconds_before=self.seconds_before,
        )

    def count(self, reports: Sequence[ClientReport], record: RoundRecord, select_on: str = "validation") -> None:
        """Add a round: its clients' reports and its record, judged on ``select_on``."""
        usable = usable_reports(reports)
        self.client_updates += len(usable)
        self.client_failures += len(reports) - len(usable)
        self.client_steps += record.client_steps
        self.client_tokens += sum(report.num_tokens for report in usable)
        self.client_slots += sum(report.num_slots for report in usable)
        self.bytes_up += record.bytes_up
        self.bytes_down += record.bytes_down
        self.seconds_longest_clients += record.seconds_longest_client
        self.clock_seconds = record.clock_seconds
        self.seconds_rounds.append(record.seconds_round)
        if (value := record.global_metric) is not None:
            self.global_metric = value
            self.global_loss = math.nan if record.global_loss is None else record.global_loss
            best = self.best_global_metric, self.best_global_round
            self.best_global_metric, self.best_global_round = better(*best, value, record.round)
        if (value := record.holdout_metric if select_on == "holdout" else record.global_metric) is not None:
            self.judged_round, before = record.round, self.selected_round
            selected = self.selected_metric, self.selected_round
            self.selected_metric, self.selected_round = better(*selected, value, record.round)
            if self.selected_round != before:
                self.selected_global_metric = math.nan if record.global_metric is None else record.global_metric
        for name, value in record.written.items():
            held = self.written.get(name, [math.nan, 0, 0])
            highest, first = better(held[0], int(held[1]), value, record.round)
            self.written = {**self.written, name: [highest, first or 0, record.round]}
        if (value := record.personalised_metric) is not None:
            best = self.best_personalised_metric, self.best_personalised_round
            self.best_personalised_metric, self.best_personalised_round = better(*best, value, record.round)


def better(best: float, best_round: int | None, value: float, round: int) -> tuple[float, int | None]:
    """Return the higher of two metrics with its round; on a tie the earlier round; NaN never wins."""
    return (value, round) if value > best or (math.isnan(best) and not math.isnan(value)) else (best, best_round)
