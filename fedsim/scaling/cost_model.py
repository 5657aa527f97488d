"""Cost model of a round: fitted to measured points, it predicts points that were not run.

A round's work is known before it runs: the config and the seed give its cohort, the cohort its work groups, and list scheduling
places these on the actors, as the executor does. Two linear models, with costs that cannot be negative, turn work into seconds:

``train = c * calls + g * groups + e * tokens`` of the busiest actor (a round trains in one call, a buffered server step in
one or none; tokens are counted in passes through all layers and back, as :mod:`fedsim.world.cost` has it), and
``rest  = c + k * cohort + v / actors``: the server and the driver's records, and an evaluation that all actors share.

The model is ours. It knows nothing of caches that overflow, of memory that runs out, or of a network that is full: it is as
good as its error on points that it was not fitted to.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.errors import ConfigError

_REWEIGHTED = 30
_SMALL = 0.02
"""Relative errors below this all weigh the same: they are noise."""
LEAST_POINTS = 3
"""Points that a fit needs: as many as a model has costs."""


@dataclass(frozen=True)
class Work:
    """Work of a point's rounds, means over rounds."""

    groups: float
    """Work groups of the busiest actor."""
    tokens: float
    """Tokens that it processes, in passes through all layers and back."""
    cohort: float
    """Clients that train."""
    actors: int
    calls: float = 1.0
    """Calls to the executor: one in every round, fewer in buffered steps, which do not train each time."""

    def train_row(self) -> tuple[float, ...]:
        """Return what the costs of training multiply."""
        return self.calls, self.groups, self.tokens

    def rest_row(self) -> tuple[float, ...]:
        """Return what the other costs multiply."""
        return 1.0, self.cohort, 1.0 / self.actors


def busiest(loads: Sequence[float], actors: int) -> tuple[int, float]:
    """Place groups on actors in their order, each on the first that is free; return groups and load of the last to end."""
    if not loads:
        return 0, 0.0
    # A group costs something even without examples, so that empty ones do not all go to one actor.
    ends: list[tuple[float, int, int, float]] = [(0.0, actor, 0, 0.0) for actor in range(actors)]
    least = 1e-3 * (sum(loads) / len(loads) if any(loads) else 1.0)
    for load in loads:
        end, actor, groups, total = heapq.heappop(ends)
        heapq.heappush(ends, (end + load + least, actor, groups + 1, total + load))
    _, _, groups, total = max(ends)
    return groups, total


@dataclass(frozen=True)
class Measured:
    """A measured point: its work, and the usual time of its rounds in seconds."""

    work: Work
    train: float
    """The driver waited for work groups."""
    rest: float
    """Everything else of the wall time."""

    @property
    def seconds(self) -> float:
        """Wall time of a round."""
        return self.train + self.rest


@dataclass(frozen=True)
class CostModel:
    """Costs in seconds, none negative."""

    train: tuple[float, ...]
    """Of a round, a work group, and a token."""
    rest: tuple[float, ...]
    """Of a round, a client, and an evaluation by one actor."""

    @classmethod
    def fit(cls, points: Sequence[Measured]) -> CostModel:
        """Fit the costs to least absolute relative errors: short rounds count as much as long ones, and one that was disturbed
        moves the costs little.

        Raises
        ------
        ConfigError
            If there are fewer points than costs.
        """
        if len(points) < LEAST_POINTS:
            raise ConfigError(
                f"a prediction needs at least {LEAST_POINTS} measured points to fit, and there are {len(points)}; give "
                "more numbers to --clients, --cohort or --actors"
            )
        train = _nonnegative([point.work.train_row() for point in points], [point.train for point in points])
        rest = _nonnegative([point.work.rest_row() for point in points], [point.rest for point in points])
        return cls(train, rest)

    def seconds(self, work: Work) -> float:
        """Return the predicted wall time of a round."""
        return float(np.dot(self.train, work.train_row()) + np.dot(self.rest, work.rest_row()))


def _nonnegative(rows: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Return the costs with the least absolute relative errors, by least squares that weigh large ones less and less."""
    from scipy.optimize import nnls

    rows_PK = np.array(rows) / np.maximum(seconds, 1e-9)[:, None]
    # Costs of very different sizes: columns of equal length keep the fit well conditioned.
    lengths_K = np.maximum(np.linalg.norm(rows_PK, axis=0), 1e-300)
    rows_PK = rows_PK / lengths_K
    weights_P = np.ones(len(seconds))
    for _ in range(_REWEIGHTED):
        scaled_K, _ = nnls(rows_PK * weights_P[:, None], weights_P)
        weights_P = 1.0 / np.sqrt(np.maximum(np.abs(rows_PK @ scaled_K - 1.0), _SMALL))
        weights_P /= weights_P.max()
    return tuple(float(cost) for cost in scaled_K / lengths_K)
