"""Layer scores: how similar the examples of a batch look to a layer.

Shape suffixes: L layers, B examples, T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-5
"""The epsilon of DESIGN's zeta; the published code's value."""


def layer_score(hidden_BTE: np.ndarray, mask_BT: np.ndarray | None = None) -> float:
    """Return zeta = sum_j [ log(lambda_j + eps) + 1 / (lambda_j + eps) ] of one layer.

    lambda are the eigenvalues of the matrix of cosine similarities between examples, each flattened to one row. A layer
    in which examples look alike scores high (FedPepTAO, section 3.2; the published ``run_getscore.py``).

    Parameters
    ----------
    hidden_BTE
        The layer's output.
    mask_BT
        1 for tokens; hidden states of other positions count as zero. None keeps them (published code).
    """
    rows = np.asarray(hidden_BTE, dtype=np.float64)
    if mask_BT is not None:
        rows = rows * mask_BT[:, :, None]
    rows = rows.reshape(len(rows), -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms == 0.0, 1.0, norms)
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T) + EPSILON
    return float(np.sum(np.log(eigenvalues) + 1.0 / eigenvalues))


def layer_scores(
    hidden_states: Sequence[np.ndarray], mask_BT: np.ndarray | None = None, *, score_last: bool = True
) -> np.ndarray:
    """Return the float64 scores [L] of all layers.

    Parameters
    ----------
    hidden_states
        L + 1 arrays [B, T, E]: the embeddings, then each layer's output.
    score_last
        False leaves the last layer at 0, as the published code does, so that it ranks behind layers with a positive score.
    """
    outputs = hidden_states[1:]
    scores_L = np.zeros(len(outputs))
    for layer in range(len(outputs) if score_last else len(outputs) - 1):
        scores_L[layer] = layer_score(outputs[layer], mask_BT)
    return scores_L
