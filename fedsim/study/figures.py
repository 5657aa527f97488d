"""What a study knows of each cell: the figures of one finished run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

NAN = math.nan


@dataclass(frozen=True)
class CurvePoint:
    """A run after a round that was evaluated, or in which the global model wrote; totals are from the run's start, over all
    clients.
    """

    round: int
    metric: float
    """NaN where only responses were written."""
    bytes: int
    """Simulated traffic, up and down."""
    seconds_published: float
    """Published time: the sum over rounds of the longest local training."""
    seconds_modelled: float = NAN
    """Time by the study's devices and network, or on the virtual clock of simulated devices."""
    seconds_wall: float = NAN
    """Wall time of the rounds so far, on the machine that ran them."""
    generated_exact_match: float = NAN
    generated_f1: float = NAN
    generated_rouge1: float = NAN
    generated_rouge2: float = NAN
    generated_rougeL: float = NAN
    generated_chrf: float = NAN


@dataclass(frozen=True)
class CellFigures:
    """Figures of one run; NaN, or None for a count, where something was not measured or is not reached."""

    dataset: str
    arm: str
    seed: int
    folder: str
    metric_name: str = "accuracy"
    num_classes: int = 2
    rounds: int = 0

    # -- metrics, of the global prompt on the validation examples and of clients' own prompts on their held-out ones
    first: float = NAN
    """Before any tuning."""
    last: float = NAN
    best: float = NAN
    best_round: int | None = None
    first_personalised: float = NAN
    """Before any tuning (``evaluation.personalised_start``)."""
    personalised: float = NAN
    best_personalised: float = NAN

    # -- what models wrote by themselves (evaluation.generate): by text metric, such as exact_match
    generated: dict[str, float] = field(default_factory=dict)
    """Of the global model, at the end."""
    first_generated: dict[str, float] = field(default_factory=dict)
    """The same before any tuning."""
    personal_generated: dict[str, float] = field(default_factory=dict)
    """Of clients' own models, at the end."""

    # -- distribution over clients of the metric on their held-out examples, at the end, with their own prompts
    client_median: float = NAN
    client_worst_decile: float = NAN
    """The value that a tenth of the clients do not reach: the 0.1 quantile."""
    client_better_share: float = NAN
    """Share of the clients that are better off than without tuning (``evaluation.personalised_start``)."""
    client_worse_share: float = NAN
    """Share of those that are worse off; with few held-out examples many clients are neither."""
    unseen_median: float = NAN
    """The median over clients that never trained."""
    clients: dict[int, dict[str, float]] = field(default_factory=dict)
    """By client: ``examples``, ``before``, ``after``, ``rounds`` (in which it trained)."""

    # -- until the target is reached for the first time
    target: float = NAN
    target_metric: str = ""
    """The text metric that it is a value of; empty for the task's metric."""
    target_round: int | None = None
    target_bytes: int | None = None
    target_seconds_published: float = NAN
    target_seconds_modelled: float = NAN
    target_seconds_wall: float = NAN

    # -- cost
    trained_parameters: int = 0
    """Of a client."""
    exchanged_parameters: float = 0
    """That a client sends in a round, of what it trained; the mean, where rounds differ. Vectors that a method needs besides
    count in ``bytes_up``."""
    stored_parameters: int = 0
    """That a client keeps between rounds: personal layers, moments, control variates."""
    bytes_up: int = 0
    bytes_down: int = 0
    client_updates: int = 0
    client_tokens: int = 0
    epsilon: float = NAN
    """What a private run has spent."""
    seconds_wall: float = NAN
    seconds_published: float = NAN
    seconds_modelled: float = NAN

    # -- simulated devices (world.devices)
    device_utilisation: float = NAN
    """Share of the time of all devices that can be drawn that went into results that count."""
    slowest_fifth_share: float = NAN
    """Share of the results that count that the slowest fifth of the clients has; without bias 0.2."""
    clients_never_seen: float = NAN
    """Clients with examples of which no result counts."""

    # -- course and sameness
    curve: tuple[CurvePoint, ...] = ()
    contents: dict[str, str] = field(default_factory=dict)
    """SHA-256 by content: ``training_data``, ``validation_data``, ``partition``, ``weights`` and so on."""
    cohorts: str = ""
    """SHA-256 of the cohorts of all rounds."""
    layers: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    """Score of each layer; empty if layers were not scored."""
    predictions: str = ""
    """Path of the file of predictions; empty if they were not kept."""
    about: dict[str, Any] = field(default_factory=dict)
    """Method, what was trained, model, versions: from the run's summary."""


@dataclass(frozen=True)
class FailedCell:
    """A cell without figures."""

    dataset: str
    arm: str
    seed: int
    sentence: str
    """Why it failed, or that it has not run."""
