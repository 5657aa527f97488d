"""FedAvg, and FedAvg with server momentum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import METHODS, Method, MethodConfig, ServerState, average_of

METHODS.register("fedavg")(Method)


@METHODS.register("fedavgm")
class FedAvgM(Method):
    """Server momentum: v = beta v + (P - P_bar), P - eta v (Hsu et al. 2019, arXiv 1909.06335)."""

    class Config(MethodConfig):
        """Keys of fedavgm."""

        momentum: float = Field(default=0.5, ge=0.0, lt=1.0)
        """Server momentum (beta)."""

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return a zero velocity."""
        return {"velocity": np.zeros_like(vector_F)}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round."""
        delta_F = state.vector_F - average_of(state, combined)
        velocity_F = self.config.momentum * state.array("velocity") + delta_F
        return state.with_arrays(state.vector_F - state.lr * velocity_F, velocity=velocity_F)
