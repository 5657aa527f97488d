"""Layer scores: how similar or dissimilar the examples of a batch appear to a layer.

Shape suffixes: L layers, B examples, T tokens, E hidden size, X numbers of an example (T E).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

EPSILON = 1e-5
"""Added to eigenvalues, so that zeros are defined; the published code's value."""


@dataclass(frozen=True)
class ScoreSettings:
    """How clients score layers."""

    kind: str
    """cosine, naswot, l1 or l2."""
    batch_size: int
    last: bool
    """Score the last layer as well."""
    padding: bool
    """Count hidden states of padding."""


def layer_score(hidden_BTE: np.ndarray, mask_BT: np.ndarray | None = None, kind: str = "cosine") -> float:
    """Return the score of one layer, each example flattened to one row.

    ``cosine``, ``l1`` and ``l2`` are zeta = sum_j [ log(lambda_j + eps) + 1 / (lambda_j + eps) ], lambda the eigenvalues of a
    matrix of similarities between rows: cosines, or the largest distance of two rows minus each distance (sum of absolute
    differences, or Euclidean). A layer in which examples look alike scores high. ``naswot`` is log det K, K_ij the number of
    entries that are positive in both rows or in neither: a layer that tells examples apart scores high. All four are in the
    published ``run_getscore.py``, which runs ``cosine``.

    Matrices of ``l1`` and ``l2`` can have negative eigenvalues, and K of two rows with the same signs has determinant zero: the
    published code then yields NaN and minus infinity. Here a negative eigenvalue counts as zero, and one of K as at least
    eps.

    Parameters
    ----------
    hidden_BTE
        The layer's output.
    mask_BT
        1 for tokens; hidden states of other positions count as zero, and match none in ``naswot``. None keeps them
        (published code).
    kind
        cosine, naswot, l1 or l2.
    """
    if kind == "naswot":
        return _log_determinant(hidden_BTE, mask_BT)
    rows_BX = _rows(hidden_BTE, mask_BT)
    eigenvalues = np.linalg.eigvalsh(_SIMILARITIES[kind](rows_BX))
    # Cosines form a Gram matrix: eigenvalues are negative only through rounding, by far less than eps.
    if kind != "cosine":
        eigenvalues = np.maximum(eigenvalues, 0.0)
    eigenvalues = eigenvalues + EPSILON
    return float(np.sum(np.log(eigenvalues) + 1.0 / eigenvalues))


def layer_scores(
    hidden_states: Sequence[np.ndarray],
    mask_BT: np.ndarray | None = None,
    *,
    kind: str = "cosine",
    score_last: bool = True,
) -> np.ndarray:
    """Return the float64 scores [L] of all layers.

    Parameters
    ----------
    hidden_states
        L + 1 arrays [B, T, E]: the embeddings, then each layer's output.
    kind
        See :func:`layer_score`.
    score_last
        False leaves the last layer at 0, as the published code does with ``cosine``, so that it ranks behind layers with a
        positive score.
    """
    outputs = hidden_states[1:]
    scores_L = np.zeros(len(outputs))
    for layer in range(len(outputs) if score_last else len(outputs) - 1):
        scores_L[layer] = layer_score(outputs[layer], mask_BT, kind)
    return scores_L


def _rows(hidden_BTE: np.ndarray, mask_BT: np.ndarray | None) -> np.ndarray:
    rows_BTE = np.asarray(hidden_BTE, dtype=np.float64)
    if mask_BT is not None:
        rows_BTE = rows_BTE * mask_BT[:, :, None]
    return rows_BTE.reshape(len(rows_BTE), -1)


def _cosines(rows_BX: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows_BX, axis=1, keepdims=True)
    rows_BX = rows_BX / np.where(norms == 0.0, 1.0, norms)
    similarities: np.ndarray = rows_BX @ rows_BX.T
    return similarities


def _nearness(rows_BX: np.ndarray, order: int) -> np.ndarray:
    distances_BB = np.stack([np.linalg.norm(rows_BX - row_X, ord=order, axis=1) for row_X in rows_BX])
    nearness: np.ndarray = distances_BB.max() - distances_BB
    return nearness


_SIMILARITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": _cosines,
    "l1": lambda rows_BX: _nearness(rows_BX, 1),
    "l2": lambda rows_BX: _nearness(rows_BX, 2),
}


def _log_determinant(hidden_BTE: np.ndarray, mask_BT: np.ndarray | None) -> float:
    """Return log det K of the agreements of signs."""
    positive_BTE = np.asarray(hidden_BTE) > 0.0
    tokens_BTE = (
        np.ones_like(positive_BTE) if mask_BT is None else np.broadcast_to(mask_BT[:, :, None], positive_BTE.shape)
    )
    rows = [
        (part * tokens_BTE).reshape(len(positive_BTE), -1).astype(np.float64) for part in (positive_BTE, ~positive_BTE)
    ]
    eigenvalues = np.linalg.eigvalsh(sum(rows_BX @ rows_BX.T for rows_BX in rows))
    return float(np.log(np.maximum(eigenvalues, EPSILON)).sum())
