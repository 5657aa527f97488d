"""Layer scores: the spectrum of the cosine similarities between a batch's examples."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def layer_scores(hidden: Array) -> Array:
    """Return the scores [L] of hidden states [L + 1, batch, tokens, hidden]; the last layer is never scored.

    The similarities are computed in float32 for float32 hidden states, else in float64.
    """
    scores = np.zeros(len(hidden) - 1)
    for layer in range(len(scores) - 1):
        rows = hidden[layer + 1].reshape(len(hidden[0]), -1)
        rows = rows if rows.dtype == np.float32 else rows.astype(np.float64)
        similarities = np.array([[cosine(one, other) for other in rows] for one in rows])
        eigenvalues = np.linalg.eigvalsh(similarities).astype(float) + 1e-5
        scores[layer] = np.sum(np.log(eigenvalues) + 1.0 / eigenvalues)
    return scores


def cosine(one: Array, other: Array) -> np.floating:
    lengths = np.linalg.norm(one) or one.dtype.type(1), np.linalg.norm(other) or one.dtype.type(1)
    return (one / lengths[0]) @ (other / lengths[1])


def descending(scores: Array) -> Array:
    """Return the layers from the highest score to the lowest."""
    return np.array(sorted(range(len(scores)), key=lambda layer: -scores[layer]))
