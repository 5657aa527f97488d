"""A server optimizer: Nesterov momentum on the pseudo-gradient, as in DiLoCo (Douillard et al. 2023, arXiv 2311.08105).

    fedsim run configs/quickstart.yaml --load examples/my_server_optimizer.py \
        server.kind=my_server_optimizer server.momentum=0.9

With delta = P - P_bar, how far the clients' mean has moved: v = beta v + delta, P - eta (delta + beta v).
"""

from collections.abc import Mapping

import numpy as np
from pydantic import Field

import fedsim
from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import Method, MethodConfig, ServerState, average_of


@fedsim.register("method", "my_server_optimizer")
class NesterovMomentum(Method):
    """Looks one step ahead along its velocity."""

    class Config(MethodConfig):
        """Keys beside ``lr`` and its decay, in section ``server``."""

        momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
        """Server momentum (beta)."""

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the velocity, zero."""
        return {"velocity": np.zeros_like(vector_F)}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round."""
        beta = self.config.momentum
        delta_F = state.vector_F - average_of(state, combined)
        velocity_F = beta * state.array("velocity") + delta_F
        vector_F = state.vector_F - state.lr * (delta_F + beta * velocity_F)
        return state.with_arrays(vector_F, velocity=velocity_F)
