"""A round between its server step and its record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.messages import ClientReport, Evaluation
from fedsim.data.metrics import compute
from fedsim.records.round_record import RoundRecord
from fedsim.world.buffered import BufferedStep
from fedsim.world.schedule import Step
from server.core import StepReport


@dataclass(frozen=True)
class Evaluated:
    """Results of a round's evaluations; None for those not due."""

    validation: Evaluation | None = None
    personalised: Evaluation | None = None
    holdout: Evaluation | None = None
    seconds: float = 0.0
    """Time the driver waited for them; time overlapped with other work does not count."""
    generated: tuple[Mapping[str, Any], ...] = ()
    """Rows of what the model wrote."""


@dataclass(frozen=True)
class OpenRound:
    """A round after its server step and before its evaluation."""

    round: int
    """Counted from 1."""
    reports: Sequence[ClientReport]
    """Reports of all its clients, by ascending id."""
    step: StepReport
    plan: Step
    """Who took part and when."""
    clients_resent: int
    """Clients whose work was sent again, counted each time."""
    seconds_train: float
    seconds_server: float

    def record(
        self,
        metric: str,
        evaluated: Evaluated,
        actors_replaced: int,
        epsilon: float | None = None,
        texts: Mapping[str, float] | None = None,
    ) -> RoundRecord:
        """Return the record of the round.

        Parameters
        ----------
        metric
            Name of the task's metric.
        actors_replaced
            Actors that were lost and replaced since the run began.
        epsilon
            What the run has spent after the round; None without privacy.
        texts
            Columns of what the model wrote; None if it did not.
        """
        figures: dict[str, float | None] = {**(texts or {})}
        parts = (evaluated.validation, evaluated.personalised, evaluated.holdout)
        for name, evaluation in zip(("global", "personalised", "holdout"), parts, strict=True):
            figures[f"{name}_metric"] = None if evaluation is None else compute(metric, evaluation.confusion_CC)
            figures[f"{name}_loss"] = None if evaluation is None else mean_loss(evaluation)
        usable = usable_reports(self.reports)
        weights = [report.num_examples for report in usable]
        clip_norm = self.step.clip_norm
        clipped = None if clip_norm is None else [(report.change_norm or 0.0) > clip_norm for report in usable]
        stale = [self.round - 1 - report.round for report in usable] if isinstance(self.plan, BufferedStep) else None
        return RoundRecord(
            round=self.round,
            **figures,
            train_loss_first=_average([report.loss_first for report in usable], weights),
            train_loss_last=_average([report.loss_last for report in usable], weights),
            server_lr=self.step.lr,
            clients_ok=self.step.clients,
            clients_failed=len(self.reports) - self.step.clients,
            clients_absent=len(self.plan.absent),
            clients_late=len(self.plan.late),
            clients_too_small=None if stale is None and self.plan.waited_seconds is None else len(self.plan.too_small),
            staleness_mean=None if stale is None else float(np.mean(stale)),
            staleness_max=None if stale is None else max(stale),
            clients_retried=self.clients_resent,
            client_examples=sum(weights),
            client_steps=sum(report.num_steps for report in usable),
            bytes_down=sum(report.bytes_down for report in self.reports),
            bytes_up=sum(report.bytes_up for report in self.reports),
            seconds_longest_client=max((report.seconds for report in usable), default=0.0),
            seconds_simulated=self.plan.seconds,
            seconds_waited=self.plan.waited_seconds,
            clock_seconds=self.plan.ended_seconds,
            seconds_round=self.seconds_train + self.seconds_server + evaluated.seconds,
            seconds_train=self.seconds_train,
            seconds_server=self.seconds_server,
            seconds_evaluate=evaluated.seconds,
            actors_replaced=actors_replaced,
            update_norm=self.step.update_norm,
            epsilon=epsilon,
            clip_norm=clip_norm,
            clip_share=float(np.mean(clipped)) if clipped else None,
        )


def _average(values: Sequence[float], weights: Sequence[int]) -> float | None:
    """Return the weighted mean; None for a round without clients (``sampling.draw: poisson``)."""
    return float(np.average(values, weights=weights)) if values else None


def usable_reports(reports: Sequence[ClientReport]) -> list[ClientReport]:
    """Return the reports of clients that did not fail."""
    return [report for report in reports if report.failure is None]


def mean_loss(evaluation: Evaluation) -> float:
    """Return the mean loss over the examples; NaN if there are none."""
    return evaluation.loss_sum / evaluation.num_examples if evaluation.num_examples else math.nan


def memory_warning(round: int, reports: Sequence[ClientReport]) -> str | None:
    """Return a warning if passes of a round (counted from 1) were split for lack of memory."""
    splits = sum(report.memory_splits for report in reports)
    if not splits:
        return None
    held = min(report.memory_tokens for report in reports if report.memory_splits)
    return (
        f"warning: round {round}: {did_not_fit(splits)}; set client.micro_batch_tokens={held} to save time and to get the "
        "same bits in a repeat"
    )


def did_not_fit(splits: int) -> str:
    """Return a clause on how often a pass was split for lack of memory."""
    times = "once" if splits == 1 else f"{splits} times"
    return f"a pass through the backbone did not fit in GPU memory and was split {times}"
