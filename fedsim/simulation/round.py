"""What is known of a round: as it stands open between its server step and its evaluation, on record, and in the totals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.core.messages import ClientReport, Evaluation
from fedsim.data.metrics import compute
from fedsim.display.progress import RoundLine
from server.availability import Answers
from server.core import StepReport


@dataclass(frozen=True)
class OpenRound:
    """A round whose server step is done and whose evaluation is still to come."""

    round: int
    """Counted from 1."""
    reports: Sequence[ClientReport]
    """Of all its clients, ascending."""
    step: StepReport
    answers: Answers
    """Who of those that were drawn took part."""
    clients_resent: int
    """Clients whose work was sent again, each time counted."""
    seconds_train: float
    seconds_server: float

    def record(
        self, metric: str, evaluation: Evaluation | None, personalised: Evaluation | None, seconds_evaluate: float
    ) -> dict[str, Any]:
        """Return the round's row of ``rounds.parquet``.

        Parameters
        ----------
        metric
            Name of the task's metric.
        seconds_evaluate
            How long the driver waited for the evaluations: what they took beside other work does not count.
        """
        usable = usable_reports(self.reports)
        weights = [report.num_examples for report in usable]
        return {
            "round": self.round,
            "global_metric": None if evaluation is None else compute(metric, evaluation.confusion_CC),
            "global_loss": None if evaluation is None else mean_loss(evaluation),
            "personalised_metric": None if personalised is None else compute(metric, personalised.confusion_CC),
            "personalised_loss": None if personalised is None else mean_loss(personalised),
            "train_loss_first": float(np.average([report.loss_first for report in usable], weights=weights)),
            "train_loss_last": float(np.average([report.loss_last for report in usable], weights=weights)),
            "server_lr": self.step.lr,
            "clients_ok": self.step.clients,
            "clients_failed": len(self.reports) - self.step.clients,
            "clients_absent": len(self.answers.absent),
            "clients_late": len(self.answers.late),
            "clients_retried": self.clients_resent,
            "client_examples": sum(weights),
            "client_steps": sum(report.num_steps for report in usable),
            "bytes_down": sum(report.bytes_down for report in self.reports),
            "bytes_up": sum(report.bytes_up for report in self.reports),
            "seconds_longest_client": max(report.seconds for report in usable),
            "seconds_simulated": self.answers.seconds,
            "seconds_round": self.seconds_train + self.seconds_server + seconds_evaluate,
            "seconds_train": self.seconds_train,
            "seconds_server": self.seconds_server,
            "seconds_evaluate": seconds_evaluate,
        }


@dataclass
class Totals:
    """Running figures of the summary; part of every checkpoint, so a resumed run ends with the same ones."""

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
    best_global_metric: float = math.nan
    best_global_round: int | None = None
    """The first round with the best metric, counted from 1."""
    best_personalised_metric: float = math.nan
    """Of the rounds after which personalised evaluation was due."""
    best_personalised_round: int | None = None
    seconds_longest_clients: float = 0.0
    """Sum over rounds of the longest training of a client."""
    seconds_rounds: list[float] = field(default_factory=list)
    seconds_before: float = 0.0
    """Seconds of this run's earlier, interrupted parts."""

    def anew(self) -> Totals:
        """Return the figures of a run that begins again after the evaluation of its start."""
        return Totals(
            initial_metric=self.initial_metric, global_metric=self.initial_metric, seconds_before=self.seconds_before
        )

    def count(self, reports: Sequence[ClientReport], record: Mapping[str, Any]) -> None:
        """Add a round: its clients' reports and its record."""
        usable = usable_reports(reports)
        self.client_updates += len(usable)
        self.client_failures += len(reports) - len(usable)
        self.client_steps += record["client_steps"]
        self.client_tokens += sum(report.num_tokens for report in usable)
        self.client_slots += sum(report.num_slots for report in usable)
        self.bytes_up += record["bytes_up"]
        self.bytes_down += record["bytes_down"]
        self.seconds_longest_clients += record["seconds_longest_client"]
        self.seconds_rounds.append(record["seconds_round"])
        if (value := record["global_metric"]) is not None:
            self.global_metric = value
            best = self.best_global_metric, self.best_global_round
            self.best_global_metric, self.best_global_round = better(*best, value, record["round"])
        if (value := record["personalised_metric"]) is not None:
            best = self.best_personalised_metric, self.best_personalised_round
            self.best_personalised_metric, self.best_personalised_round = better(*best, value, record["round"])


def better(best: float, best_round: int | None, value: float, round: int) -> tuple[float, int | None]:
    """Return the higher of two metrics with its round; of equal ones the earlier, of one that is NaN the other."""
    return (value, round) if value > best or (math.isnan(best) and not math.isnan(value)) else (best, best_round)


def usable_reports(reports: Sequence[ClientReport]) -> list[ClientReport]:
    """Return the reports of those clients that did not fail."""
    return [report for report in reports if report.failure is None]


def mean_loss(evaluation: Evaluation) -> float:
    """Return the mean loss over the examples, NaN if there are none."""
    return evaluation.loss_sum / evaluation.num_examples if evaluation.num_examples else math.nan


def round_line(record: Mapping[str, Any]) -> RoundLine:
    """Return what is shown of a round on record."""
    return RoundLine(
        round=record["round"],
        metric=record["global_metric"],
        loss=record["train_loss_last"],
        clients_ok=record["clients_ok"],
        clients_failed=record["clients_failed"],
        clients_retried=record["clients_retried"],
        seconds=record["seconds_round"],
        bytes_up=record["bytes_up"],
        bytes_down=record["bytes_down"],
    )


def memory_warning(round: int, reports: Sequence[ClientReport]) -> str | None:
    """Return what to say where memory made passes of a round, counted from 1, be cut in two."""
    splits = sum(report.memory_splits for report in reports)
    if not splits:
        return None
    held = min(report.memory_tokens for report in reports if report.memory_splits)
    return (
        f"warning: round {round}: {did_not_fit(splits)}; set client.micro_batch_tokens={held}, so that no time is lost and a "
        "repeat gives the same bits"
    )


def did_not_fit(splits: int) -> str:
    """Say how often memory made a pass be cut in two."""
    times = "once" if splits == 1 else f"{splits} times"
    return f"the GPU's memory did not hold a pass through the backbone, which was cut in two {times}"
