"""The course of a run: metric, bytes and both times after each round, from its records."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.records.columns import TEXT_METRIC_WORDS
from fedsim.records.published import first_reaching, seconds_so_far
from fedsim.study.devices import DevicesConfig
from fedsim.study.figures import CurvePoint
from fedsim.study.modelled_time import round_seconds

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Course:
    """A run after each of its R rounds, the state before any training first; totals are from the run's start."""

    round_R: np.ndarray
    metric_R: np.ndarray
    """The global metric; NaN where the round was not evaluated."""
    bytes_R: np.ndarray
    seconds_published_R: np.ndarray
    seconds_modelled_R: np.ndarray
    """On the devices of the study, else on those of the run; NaN without, or from a round on whose tokens are not on record."""
    seconds_wall_R: np.ndarray
    """Of the rounds, on the machine that ran them."""
    written: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By text metric, each round's value; NaN where the global model did not write."""

    @classmethod
    def of(cls, rounds: pa.Table, clients: pa.Table, devices: DevicesConfig | None) -> Course:
        """Read the course from the tables of a run."""
        columns = _columns(rounds.sort_by("round"), rounds.column_names)
        round_R = columns["round"]
        traffic_R = np.nan_to_num(columns["bytes_up"]) + np.nan_to_num(columns["bytes_down"])
        return cls(
            round_R=round_R,
            metric_R=columns["global_metric"].astype(np.float64),
            bytes_R=np.cumsum(traffic_R.astype(np.int64)),
            seconds_published_R=seconds_so_far(columns["seconds_longest_client"]),
            seconds_modelled_R=np.cumsum(_modelled(round_R, columns, clients, devices)),
            seconds_wall_R=np.cumsum(np.nan_to_num(columns["seconds_round"].astype(np.float64))),
            written={
                name: columns[f"generated_{name}"].astype(np.float64)
                for name in TEXT_METRIC_WORDS
                if f"generated_{name}" in columns
            },
        )

    def curve(self) -> tuple[CurvePoint, ...]:
        """Return the rounds that were evaluated, or in which the global model wrote."""
        known_R = ~np.isnan([self.metric_R, *self.written.values()]).all(axis=0)
        return tuple(self._point(index) for index in np.flatnonzero(known_R).tolist())

    def reaching(self, target: float, metric: str | None = None) -> CurvePoint | None:
        """Return the first round that reaches a target; None if none does.

        Parameters
        ----------
        metric
            The text metric that it is a value of; None for the task's metric.
        """
        values_R = self.metric_R if metric is None else self.written.get(metric, np.full_like(self.metric_R, np.nan))
        first = first_reaching(values_R, target)
        return None if first is None else self._point(first)

    @property
    def seconds_modelled(self) -> float:
        """Modelled time of the whole run."""
        return float(self.seconds_modelled_R[-1]) if len(self.seconds_modelled_R) else math.nan

    def _point(self, index: int) -> CurvePoint:
        return CurvePoint(
            round=int(self.round_R[index]),
            metric=float(self.metric_R[index]),
            bytes=int(self.bytes_R[index]),
            seconds_published=float(self.seconds_published_R[index]),
            seconds_modelled=float(self.seconds_modelled_R[index]),
            seconds_wall=float(self.seconds_wall_R[index]),
            **{f"generated_{name}": float(values_R[index]) for name, values_R in self.written.items()},
        )


def _modelled(
    round_R: np.ndarray, rounds: Mapping[str, np.ndarray], clients: pa.Table, devices: DevicesConfig | None
) -> np.ndarray:
    """Return the modelled seconds of each round; no training, no time."""
    if devices is None:
        simulated_R = rounds.get("seconds_simulated", np.full(len(round_R), np.nan)).astype(np.float64)
        return np.where((round_R == 0) & np.isfinite(simulated_R[round_R > 0]).any(), 0.0, simulated_R)
    needed = ("round", "client", "num_tokens", "bytes_down", "bytes_up", "status")
    seconds = round_seconds(_columns(clients, needed), devices)
    return np.array([0.0 if round == 0 else seconds.get(round, np.nan) for round in round_R.tolist()])


def _columns(table: pa.Table, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in names}


def cohorts_digest(clients: pa.Table, events: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of the cohorts of all rounds: the clients drawn, whatever became of them.

    Parameters
    ----------
    clients
        ``clients.parquet``: all who took part.
    events
        The events of the run, of which ``absent`` and ``late`` name the others.

    Returns
    -------
    str
        Empty if the run did not record its clients.
    """
    if not clients.num_rows:
        return ""
    drawn: defaultdict[int, set[int]] = defaultdict(set)
    for round, client in zip(clients["round"].to_pylist(), clients["client"].to_pylist(), strict=True):
        drawn[round].add(client)
    for event in events:
        if event["event"] in ("absent", "late"):
            drawn[event["round"]].update(event["clients"])
    text = json.dumps([[round, sorted(drawn[round])] for round in sorted(drawn)])
    return hashlib.sha256(text.encode()).hexdigest()
