"""Choosing a next token from scores: the most likely one, or one drawn from the likely ones.

Shape suffixes: B examples, V vocabulary size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.core.decoding import Decoding


def choose(scores_BV: Tensor, decoding: Decoding, uniform_B: np.ndarray | None) -> np.ndarray:
    """Return the next token of each example, int64 [B].

    Parameters
    ----------
    scores_BV
        Scores of the vocabulary; compared in float32, as transformers does.
    uniform_B
        A number in [0, 1) for each example; needed to sample.

    Raises
    ------
    ValueError
        If scores to sample from are not finite.
    """
    if not decoding.do_sample:
        best_B: np.ndarray = scores_BV.float().argmax(dim=1).cpu().numpy()
        return best_B
    assert uniform_B is not None, "sampling needs draws"
    if not bool(torch.isfinite(scores_BV).all()):
        raise ValueError("scores of next tokens are not finite, so none can be drawn")
    # On the CPU, where sums have a fixed order; in float64, so that a draw at the edge of two tokens is rare.
    chance_BV = likely(scores_BV.float().cpu().double(), decoding).softmax(dim=1)
    reached_BV = chance_BV.cumsum(dim=1)
    drawn_B1 = torch.from_numpy(uniform_B).unsqueeze(1) * reached_BV[:, -1:]
    # The first token whose sum is above the draw: one without chance adds nothing, so it is never the first.
    token_B: np.ndarray = torch.searchsorted(reached_BV, drawn_B1, right=True)[:, 0].numpy()
    return token_B


def likely(scores_BV: Tensor, decoding: Decoding) -> Tensor:
    """Return scores over the temperature, -inf for tokens that are not among the likely ones, as transformers chooses them."""
    scores_BV = scores_BV / decoding.temperature
    if decoding.top_k is not None and decoding.top_k < scores_BV.shape[1]:
        least_B1 = scores_BV.topk(decoding.top_k, dim=1).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < least_B1, -torch.inf)
    if decoding.top_p < 1.0:
        sorted_BV, order_BV = scores_BV.sort(dim=1, descending=False)
        # From the least likely on, whatever stays below 1 - top_p in sum is left out, but never the most likely token.
        left_out_BV = sorted_BV.softmax(dim=1).cumsum(dim=1) <= 1.0 - decoding.top_p
        left_out_BV[:, -1] = False
        scores_BV = scores_BV.masked_fill(left_out_BV.scatter(1, order_BV, left_out_BV), -torch.inf)
    return scores_BV
