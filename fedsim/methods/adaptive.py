"""FedAdam, FedYogi and FedAdagrad (Reddi et al. 2021, arXiv 2003.00295, algorithm 2), without bias correction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from pydantic import Field, PositiveFloat

from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import METHODS, Method, MethodConfig, ServerState, average_of


class AdaptiveConfig(MethodConfig):
    """Keys that all three kinds share."""

    lr: PositiveFloat = 0.2
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of the first moment (beta_1)."""
    tau: PositiveFloat = 1e-3
    """Degree of adaptivity, added to the root of the second moment."""


class Adaptive(Method):
    """A step along the first moment, divided by the root of the second; the kinds differ in the second moment.

    The first moment starts at zero, the second at tau^2.
    """

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the initial moments."""
        return {
            "velocity": np.zeros_like(vector_F),
            "second_moment": np.full_like(vector_F, self.config.tau**2),
        }

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round."""
        change_F = average_of(state, combined) - state.vector_F
        momentum = self.config.momentum
        first_F = momentum * state.array("velocity") + (1.0 - momentum) * change_F
        second_F = self.second_moment(state.array("second_moment"), change_F**2)
        vector_F = state.vector_F + state.lr * first_F / (np.sqrt(second_F) + self.config.tau)
        return state.with_arrays(vector_F, velocity=first_F, second_moment=second_F)

    @abstractmethod
    def second_moment(self, second_F: np.ndarray, square_F: np.ndarray) -> np.ndarray:
        """Return the second moment updated with a round's squared change."""


class DecayingConfig(AdaptiveConfig):
    """Keys of FedAdam and FedYogi."""

    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Decay of the second moment."""


@METHODS.register("fedadam")
class FedAdam(Adaptive):
    """The second moment is a running mean, as in Adam."""

    Config = DecayingConfig

    def second_moment(self, second_F: np.ndarray, square_F: np.ndarray) -> np.ndarray:
        """Return beta_2 v + (1 - beta_2) change^2."""
        beta2 = self.config.beta2
        result_F: np.ndarray = beta2 * second_F + (1.0 - beta2) * square_F
        return result_F


@METHODS.register("fedyogi")
class FedYogi(Adaptive):
    """The second moment moves towards the square by at most a fraction of the square, as in Yogi."""

    Config = DecayingConfig

    def second_moment(self, second_F: np.ndarray, square_F: np.ndarray) -> np.ndarray:
        """Return v - (1 - beta_2) change^2 sign(v - change^2)."""
        result_F: np.ndarray = second_F - (1.0 - self.config.beta2) * square_F * np.sign(second_F - square_F)
        return result_F


@METHODS.register("fedadagrad")
class FedAdagrad(Adaptive):
    """The second moment is a sum, as in Adagrad."""

    class Config(AdaptiveConfig):
        """Keys of fedadagrad."""

        momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Decay of the first moment (beta_1)."""

    def second_moment(self, second_F: np.ndarray, square_F: np.ndarray) -> np.ndarray:
        """Return v + change^2."""
        return second_F + square_F
