"""FedBPT: prompts tuned without gradients (Sun et al. 2023, arXiv 2310.01467), here with separable CMA-ES on both sides.

Devices search from the server's mean z with its deviations d. They send the mean z_i that they end with, and the variance that
chance alone would have given it, in units of d^2: a number. To the server the z_i are the candidates of a search of its own: it
moves z to their mean, and adapts d by how far they moved together, and apart, compared with chance. The paper's server ranks
devices by the loss that each reports, and its covariance is full; here devices weigh by their examples, as in every other
method, and the covariance is diagonal, so that devices receive two vectors and not a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.core.cma import Rates, Spread
from fedsim.core.messages import DEVIATION, WALKED, CombinedUpdate
from fedsim.core.method import (
    METHODS,
    ClientRound,
    Correction,
    Entries,
    Method,
    ServerState,
    average_of,
    times,
)

VARIANCE, OF_MEAN, SQUARES = "variance", "variance_of_mean", "squares"
"""Sums of w_i v_i and of w_i^2 v_i, where v_i is the variance that chance alone would have given z_i; of w_i (z_i - z)^2."""
_PATH_SIGMA, _PATH_C = "path_sigma", "path_c"


class Search(Correction):
    """Begins a device's search with the server's deviations, and sums up what the server learns from."""

    reads = (DEVIATION,)
    tallies = (WALKED,)
    positive = (DEVIATION,)
    sums = (VARIANCE, OF_MEAN, SQUARES)
    words: Mapping[str, str] = {
        DEVIATION: "deviations",
        WALKED: "steps",
        VARIANCE: "variance",
        OF_MEAN: "variance",
        SQUARES: "squared steps",
    }
    needs = "deviations"
    kept_by = "server.kind=fedbpt"

    def begin(self, client: ClientRound) -> Mapping[str, np.ndarray | float]:
        """Return the deviations of the first candidates."""
        return {DEVIATION: _deviation(client)}

    def terms(self, client: ClientRound, weight: float, entries: Entries) -> Mapping[str, np.ndarray]:
        """Return w_i v_i, w_i^2 v_i and w_i (z_i - z)^2."""
        variance = np.square(entries.float64(_deviation(client))) * entries.float64(client.tallies[WALKED])
        moved = entries.float64(client.trained_F) - entries.float64(client.start_F)
        return {
            VARIANCE: variance * weight,
            OF_MEAN: variance * weight**2,
            SQUARES: times(np.square(moved), weight),
        }


def _deviation(client: ClientRound) -> np.ndarray:
    deviation_F: np.ndarray = client.config.optimizer.sigma * client.read(DEVIATION)
    return deviation_F


@METHODS.register("fedbpt")
class FedBpt(Method):
    """A search whose candidates are the results of the devices' searches. Its d is in units of ``client.optimizer.sigma``."""

    allowed = ("none",)
    instead = "its devices have no gradients to correct"

    def parts(self, correction: Correction) -> tuple[Correction, ...]:
        """Return the device's half."""
        return (Search(),)

    @property
    def serves(self) -> tuple[str, ...]:
        """The deviations d."""
        return (DEVIATION,)

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return deviations of one, and paths of zeros."""
        zeros_F = np.zeros_like(vector_F)
        return {DEVIATION: np.ones_like(vector_F), _PATH_SIGMA: zeros_F, _PATH_C: zeros_F}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round."""
        spread = Spread(state.array(DEVIATION), state.array(_PATH_SIGMA), state.array(_PATH_C))
        variance_F = combined.mean_F(VARIANCE)
        of_mean_F = combined.sums[OF_MEAN] / combined.weight_sum**2
        # So many devices of equal weight would give the mean the same variance.
        devices = float(np.mean(variance_F / of_mean_F))
        moved_F = (average_of(state, combined) - state.vector_F) / np.sqrt(of_mean_F)
        rates = Rates(len(moved_F), devices)
        spread, _ = spread.after(rates, moved_F, combined.mean_F(SQUARES) / variance_F, state.steps - 1)
        arrays = {DEVIATION: spread.deviation_F, _PATH_SIGMA: spread.path_sigma_F, _PATH_C: spread.path_c_F}
        return super().apply(state, combined).with_arrays(**arrays)
