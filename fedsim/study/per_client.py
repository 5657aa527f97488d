"""Distribution over clients of their own results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def client_figures(personal: pa.Table) -> dict[str, Any]:
    """Return the figures of :class:`fedsim.study.figures.CellFigures` about clients, from ``personal.parquet``."""
    clients = {
        row["client"]: {
            "examples": float(row["examples"]),
            "before": _number(row["start_metric"]),
            "after": _number(row["metric"]),
            "rounds": float(row["rounds"]),
        }
        for row in personal.to_pylist()
    }
    rows = clients.values()
    after = [row["after"] for row in rows]
    return {
        "clients": clients,
        "client_median": quantile(after, 0.5),
        "client_worst_decile": quantile(after, 0.1),
        "client_better_share": higher_share([(row["before"], row["after"]) for row in rows]),
        "client_worse_share": higher_share([(row["after"], row["before"]) for row in rows]),
        "unseen_median": quantile([row["after"] for row in rows if row["rounds"] == 0], 0.5),
    }


def quantile(values: list[float], share: float) -> float:
    """Return a quantile of the values that are there, linear between two of them; NaN without any."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.quantile(there, share)) if there else math.nan


def higher_share(pairs: list[tuple[float, float]]) -> float:
    """Return the share of pairs whose second value is the higher, among those with both; NaN without any."""
    both = [two > one for one, two in pairs if not math.isnan(one) and not math.isnan(two)]
    return float(np.mean(both)) if both else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value
