"""The figures of a cell that studies average over seeds: their labels, and how they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedsim.records.columns import TEXT_METRIC_WORDS
from fedsim.study.figures import CellFigures

Kind = Literal["metric", "text", "share", "round", "bytes", "seconds", "count"]


@dataclass(frozen=True)
class Measure:
    """A figure of a cell."""

    name: str
    """The field of :class:`~fedsim.study.figures.CellFigures`; of one that holds several figures, with the name of this one
    behind a dot."""
    label: str
    """In a sentence or at the head of a column."""
    kind: Kind
    """What it counts in: decides how it is printed."""

    def of(self, cell: CellFigures) -> float:
        """Return the figure of a cell as a number; NaN if it has none."""
        field, _, key = self.name.partition(".")
        value = getattr(cell, field)
        value = value.get(key) if key else value
        return float(value) if value is not None and math.isfinite(value) else math.nan


GENERATED = tuple(f"generated.{name}" for name in TEXT_METRIC_WORDS)
"""What the global model wrote at the end, by text metric."""
_TEXT_METRICS = {name: name.replace("_", " ") for name in TEXT_METRIC_WORDS}


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("first", "before tuning", "metric"),
        Measure("last", "last global", "metric"),
        Measure("best", "best global", "metric"),
        Measure("best_round", "round of the best", "round"),
        Measure("first_personalised", "personalised before tuning", "metric"),
        Measure("personalised", "last personalised", "metric"),
        Measure("best_personalised", "best personalised", "metric"),
        *(
            Measure(f"first_generated.{name}", f"{words} before tuning", "text")
            for name, words in _TEXT_METRICS.items()
        ),
        *(Measure(f"generated.{name}", words, "text") for name, words in _TEXT_METRICS.items()),
        *(
            Measure(f"personal_generated.{name}", f"personalised {words}", "text")
            for name, words in _TEXT_METRICS.items()
        ),
        Measure("client_median", "median client", "metric"),
        Measure("client_worst_decile", "worst decile of clients", "metric"),
        Measure("client_better_share", "share of clients better than without tuning", "share"),
        Measure("client_worse_share", "share of clients worse than without tuning", "share"),
        Measure("unseen_median", "median client that never trained", "metric"),
        Measure("target_round", "rounds to the target", "round"),
        Measure("target_bytes", "bytes to the target", "bytes"),
        Measure("target_seconds_published", "seconds to the target, published definition", "seconds"),
        Measure("target_seconds_modelled", "seconds to the target, our model of devices", "seconds"),
        Measure("target_seconds_wall", "wall time to the target", "seconds"),
        Measure("trained_parameters", "trained parameters", "count"),
        Measure("exchanged_parameters", "exchanged parameters", "count"),
        Measure("stored_parameters", "stored parameters", "count"),
        Measure("rounds", "rounds", "round"),
        Measure("bytes_up", "bytes up", "bytes"),
        Measure("bytes_down", "bytes down", "bytes"),
        Measure("client_updates", "client updates", "count"),
        Measure("client_tokens", "tokens trained on", "count"),
        Measure("epsilon", "epsilon", "metric"),
        Measure("seconds_wall", "wall time", "seconds"),
        Measure("seconds_published", "time, published definition", "seconds"),
        Measure("seconds_modelled", "time, our model of devices", "seconds"),
        Measure("device_utilisation", "devices at work", "share"),
        Measure("slowest_fifth_share", "results of the slowest fifth", "share"),
        Measure("clients_never_seen", "clients without a result", "count"),
    )
}
"""All figures that are averaged, by name, in the order of reports."""

SIMULATED = {
    "seconds_modelled": "simulated time",
    "target_seconds_modelled": "simulated time to the target",
}
"""Labels of modelled times where they are those of simulated devices (world.devices)."""
BOUNDS = {**dict.fromkeys(("accuracy", "accuracy_f1", "token_accuracy"), (0.0, 1.0)), "matthews": (-1.0, 1.0)}
"""Range of each metric by name; of a plug-in's nothing is known."""


def bounds(measure: Measure, metric_name: str) -> tuple[float, float]:
    """Return between which values a figure, and so its mean, can lie."""
    if measure.kind in ("share", "text"):
        return 0.0, 1.0
    if measure.kind != "metric" or measure.name == "epsilon":
        return 0.0, math.inf
    return BOUNDS.get(metric_name, (-math.inf, math.inf))


OF_TASK = ("last", "best", "personalised", "best_personalised")
"""Figures of the task's metric whose differences between arms are tested; higher is better in each."""
COMPARED = (*OF_TASK, *GENERATED)
"""All figures whose differences between arms are tested; higher is better in each."""

TO_TARGET = (
    "target_round", "target_bytes", "target_seconds_published", "target_seconds_modelled", "target_seconds_wall",
)  # fmt: skip
"""What an arm needs to reach the target; there is no value for a seed that does not reach it."""
