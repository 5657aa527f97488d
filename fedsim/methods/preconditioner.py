"""Averages clients' changes in a common metric, the mean of their optimizers' preconditioners (after Wang et al. 2021).

Let S_i be what the client's steps subtracted, G_i the sum over steps of learning rate times gain, D_i = 1 / G_i. Devices send
the sums of w_i (P_i + S_i), w_i D_i and w_i D_i S_i, and P_bar = sum w_i (P_i + S_i) / sum w_i - sum w_i D_i S_i / sum w_i D_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fedsim.core.messages import VECTOR
from fedsim.core.method import CORRECTIONS, ClientRound, Correction, Entries, Local, times

_METRIC, _METRIC_STEP = "metric", "metric_step"
_STEPPED, _GAIN = "stepped", "gain"


@CORRECTIONS.register("preconditioner")
class Preconditioner(Correction):
    """Tallies steps and their gain, so that the server can average in a common metric; the steps are not changed."""

    tallies = (_STEPPED, _GAIN)
    displacements = (_STEPPED,)
    positive = (_GAIN,)
    sums = (VECTOR, _METRIC, _METRIC_STEP)
    words = MappingProxyType({_STEPPED: "steps"})
    combines = "averages them in a common metric"

    def up(self, client: Any) -> tuple[str, ...]:
        """Return G_i and S_i if the server cannot compute them itself.

        With plain or momentum SGD, G_i is the same in every entry: one number. Without weight decay S_i = P_t - P_i; with it
        P_i sums the steps with different weights, so S_i cannot be recovered.
        """
        optimizer = client.optimizer
        return (_GAIN,) * (optimizer.kind != "sgd") + (_STEPPED,) * (optimizer.weight_decay > 0.0)

    def stepped(self, local: Local, step_CA: Any) -> None:
        """Add the step and its gain to the tallies."""
        local.tallies[_STEPPED].addcmul_(step_CA, local.lr_C1)
        local.tallies[_GAIN].addcmul_(local.gain_CA().mul_(local.clipped_C1), local.lr_C1)

    def terms(self, client: ClientRound, weight: float, entries: Entries) -> Mapping[str, np.ndarray]:
        """Return w (P + S), w D and w D S."""
        vector, stepped = entries.float64(client.trained_F), entries.float64(client.tallies[_STEPPED])
        np.add(vector, stepped, out=vector)
        metric = times(_reciprocal(entries.float64(client.tallies[_GAIN])), weight)
        return {
            VECTOR: times(vector, weight),
            _METRIC: metric,
            _METRIC_STEP: np.multiply(metric, stepped, out=stepped),
        }

    def average(self, sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
        """Return P_bar in the common metric."""
        average_F: np.ndarray = sums[VECTOR] / weight_sum
        metric_F, step_F = sums[_METRIC], sums[_METRIC_STEP]
        # No client took a step where the common metric is zero.
        average_F -= np.divide(step_F, metric_F, out=np.zeros_like(metric_F), where=metric_F > 0.0)
        return average_F


def _reciprocal(gain: np.ndarray) -> np.ndarray:
    """Invert ``gain`` in place; zero gain, where the client took no step, gives zero and so no weight."""
    if gain.min() > 0.0:
        return np.divide(1.0, gain, out=gain)
    # Masked division is many times slower.
    return np.divide(1.0, gain, out=np.zeros_like(gain), where=gain > 0.0)
