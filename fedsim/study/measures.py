"""The figures of a cell that studies average over seeds: their labels, and how they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedsim.study.figures import CellFigures

Kind = Literal["metric", "share", "round", "bytes", "seconds", "count"]


@dataclass(frozen=True)
class Measure:
    """A figure of a cell."""

    name: str
    """The field of :class:`~fedsim.study.figures.CellFigures`."""
    label: str
    """In a sentence or at the head of a column."""
    kind: Kind
    """What it counts in: decides how it is printed."""

    def of(self, cell: CellFigures) -> float:
        """Return the figure of a cell as a number; NaN if it has none."""
        value = getattr(cell, self.name)
        return float(value) if value is not None and math.isfinite(value) else math.nan


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
        Measure("client_median", "median client", "metric"),
        Measure("client_worst_decile", "worst decile of clients", "metric"),
        Measure("client_better_share", "share of clients better than without tuning", "share"),
        Measure("client_worse_share", "share of clients worse than without tuning", "share"),
        Measure("unseen_median", "median client that never trained", "metric"),
        Measure("target_round", "rounds to the target", "round"),
        Measure("target_bytes", "bytes to the target", "bytes"),
        Measure("target_seconds_published", "seconds to the target, published definition", "seconds"),
        Measure("target_seconds_modelled", "seconds to the target, our model of devices", "seconds"),
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
    )
}
"""All figures that are averaged, by name, in the order of reports."""

COMPARED = ("last", "best", "personalised", "best_personalised")
"""Metrics whose differences between arms are tested; higher is better in each."""

TO_TARGET = ("target_round", "target_bytes", "target_seconds_published", "target_seconds_modelled")
"""What an arm needs to reach the target; there is no value for a seed that does not reach it."""
