"""Predictions for single examples, kept where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """What was predicted for each of some examples, in their order."""

    predicted_N: np.ndarray
    """int64 class numbers; of responses, 1 if each of their tokens is the most likely one where it stands, else 0."""
    loss_N: np.ndarray
    """float64 losses; of responses, the mean over their tokens."""

    def __add__(self, other: Predictions) -> Predictions:
        return Predictions(
            np.concatenate((self.predicted_N, other.predicted_N)), np.concatenate((self.loss_N, other.loss_N))
        )
