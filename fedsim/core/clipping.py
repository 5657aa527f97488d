"""Clipping of a client's change to a norm: never longer than the norm, after rounding to the format of messages as well.

Shape suffix: F entries of the exchanged vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_MARGIN = 1.0 - 2.0**-30
"""What of the norm is used: more than covers the rounding of a float64 norm of billions of entries."""


@dataclass(frozen=True)
class Clipping:
    """What the server tells a round's clients about privacy."""

    norm: float
    """Longest change that a client sends."""
    noise_std: float = 0.0
    """Standard deviation of a client's share of the noise, in each entry; 0 if the server adds the noise."""
    bit_noise_std: float = 0.0
    """The same for the bit that says whether the change was within the norm."""


def change_norm(start_F: np.ndarray, vector_F: np.ndarray) -> float:
    """Return the norm of the change from ``start_F`` to ``vector_F``, in float64."""
    return float(np.linalg.norm(vector_F.astype(np.float64) - start_F))


def clipped(start_F: np.ndarray, vector_F: np.ndarray, norm: float) -> np.ndarray:
    """Return ``vector_F``, with its change from ``start_F`` shortened to ``norm`` if it is longer.

    The result has the dtype of ``vector_F``, which has to be that of ``start_F``. Rounding to it may lengthen a change: an
    entry for which it did takes the next number towards ``start_F``. So no entry changes by more than in float64, nor does the
    norm exceed ``norm``. A vector that is not finite is returned as it is, to be refused by whoever checks for that.
    """
    change_F = vector_F.astype(np.float64) - start_F
    length = float(np.linalg.norm(change_F))
    if not math.isfinite(length) or length <= norm * _MARGIN:
        return vector_F
    change_F *= norm * _MARGIN / length
    sent_F = (start_F + change_F).astype(vector_F.dtype)
    longer_F = np.abs(sent_F.astype(np.float64) - start_F) > np.abs(change_F)
    return np.where(longer_F, np.nextafter(sent_F, start_F), sent_F)
