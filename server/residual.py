"""Exact aggregation of low-rank changes: what averages of A and B lose goes into the maps (FedEx-LoRA, arXiv 2410.09432).

Shape suffixes: F entries of the server's vector, T those that a round trains, k clients, R rank, I and O features in and out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.core.low_rank import LowRank
from fedsim.core.messages import VECTOR, CombinedUpdate


def with_residuals(
    vector_F: np.ndarray, trained_T: np.ndarray, combined: CombinedUpdate, changes: Sequence[LowRank]
) -> np.ndarray:
    """Return the vector whose maps are the mean of the clients' maps: each residual grows by mean(s B_i A_i) - s B A.

    Parameters
    ----------
    vector_F
        The vector after the server's step, with the residuals from before the round.
    trained_T
        A and B after the step.
    combined
        The round's update, with each client's vector and weight.
    """
    assert combined.weights_k is not None
    share_k = combined.weights_k / combined.weights_k.sum()
    vector_kT = combined.each[VECTOR].astype(np.float64)
    made_F = vector_F.copy()
    for change in changes:
        down_kRI = vector_kT[:, change.down].reshape(len(share_k), change.rank, -1)
        up_kOR = vector_kT[:, change.up].reshape(len(share_k), -1, change.rank)
        mean_OI = np.einsum("k,kor,kri->oi", share_k, up_kOR, down_kRI, optimize=True)
        own_OI = trained_T[change.up].reshape(-1, change.rank) @ trained_T[change.down].reshape(change.rank, -1)
        made_F[change.residual] += change.scale * (mean_OI - own_OI).reshape(-1)
    return made_F
