"""FedDyn (Acar et al. 2021, arXiv 2111.04263): each device's loss is regularized so that all devices share one minimum.

Device i minimises f_i(p) - <h_i, p> + alpha/2 |p - P_t|^2. It keeps h_i+ = h_i - alpha (P_i - P_t), which is the gradient of
f_i at P_i if it trains to convergence; the server keeps h, their mean over all clients. At a fixed point P_i = P_t = P and
h = 0, so the gradients of the f_i sum to zero: the optimum of the sum, for any number of local steps.

Nothing travels besides the prompt: h follows from the mean of the P_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import PositiveFloat

from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import (
    METHODS,
    ClientRound,
    Correction,
    Local,
    Method,
    MethodConfig,
    ServerState,
    average_of,
)

_OWN, _MEAN = "feddyn", "feddyn_mean"
"""h_i on the devices, h on the server."""


class DynamicRegularizer(Correction):
    """Adds alpha (p - P_t) - h_i to the gradient on the exchanged entries.

    Parameters
    ----------
    alpha
        Strength of the pull to the global vector.
    """

    kept = (_OWN,)

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def begin(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return h_i."""
        return {_OWN: client.kept(_OWN)}

    def gradient(self, local: Local, gradient_CA: Any) -> Any:
        """Add alpha (p - P_t) - h_i."""
        pull_CF = self.alpha * (local.vector_CF - local.start_CF)
        return local.add_to(gradient_CA, pull_CF - local.begun(_OWN))

    def finish(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return h_i - alpha (P_i - P_t)."""
        return {_OWN: client.kept(_OWN) - self.alpha * (client.trained_F - client.start_F)}


@METHODS.register("feddyn")
class FedDyn(Method):
    """The mean of the devices' vectors, less h / alpha."""

    class Config(MethodConfig):
        """Keys of feddyn."""

        alpha: PositiveFloat = 0.01
        """Strength of the devices' pull to the global vector. A client's deviation left after a round is divided by it, so a
        small value takes large steps and a large one learns slowly."""

    allowed = ("none",)
    instead = "its devices have the correction that it needs"

    def parts(self, correction: Correction) -> tuple[Correction, ...]:
        """Return the dynamic regularizer."""
        return (DynamicRegularizer(self.config.alpha),)

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return a zero h."""
        return {_MEAN: np.zeros_like(vector_F)}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round: h+ = h - alpha sum_S w_i (P_i - P_t) / sum_N w_i, and P_bar - h+ / alpha.

        As in FedAvg, a learning rate other than 1 scales the step to that point.
        """
        alpha, average_F = self.config.alpha, average_of(state, combined)
        share = combined.weight_sum / combined.population_weight
        mean_F = state.array(_MEAN) - alpha * share * (average_F - state.vector_F)
        target_F = average_F - mean_F / alpha
        vector_F = target_F + (1.0 - state.lr) * (state.vector_F - target_F)
        return replace(state, vector_F=vector_F, arrays={**state.arrays, _MEAN: mean_F})
