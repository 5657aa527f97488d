"""Which keys each query sees, when attention makes its own masks.

Shape suffixes: B examples, T tokens, P keys of a prompt, V = P + T keys a query may see.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.core.words import Branches


def visible_keys(
    lengths_B: np.ndarray,
    num_tokens: int,
    *,
    prompt_length: int,
    is_causal: bool,
    window: int | None,
    branches: Branches | None = None,
) -> np.ndarray | None:
    """Return a bool mask that broadcasts to [B, 1, T, V]; None if everything is visible.

    Parameters
    ----------
    lengths_B
        Tokens of each example; padding follows them.
    num_tokens
        T, at least the longest of them.
    prompt_length
        P keys before those of the tokens, which every query sees.
    window
        Sliding window of the layer, as in transformers.
    branches
        Branches of a tree that the last tokens of each example are; attention is then causal.
    """
    tokens_T = np.arange(num_tokens)
    back_TT = tokens_T[:, None] - tokens_T[None, :]
    own_BT = tokens_T < lengths_B[:, None]
    visible_11TT: np.ndarray
    if branches is not None:
        visible_11TT = branches.visible(lengths_B, num_tokens, window)[:, None]
    elif is_causal:
        # Padding comes after all tokens of its example, so none of them sees it.
        visible_11TT = (back_TT >= 0)[None, None]
        if window is not None:
            visible_11TT = visible_11TT & (back_TT < window)
    elif window is not None and window < num_tokens - 1:
        # As in transformers: the window extends to both sides. Padding sees everything, since every query needs a key.
        near_B1TT = (np.abs(back_TT) <= window) & own_BT[:, None, None, :]
        visible_11TT = near_B1TT | ~own_BT[:, None, :, None]
    elif not own_BT.all():
        visible_11TT = own_BT[:, None, None, :]
    else:
        return None
    return np.pad(visible_11TT, ((0, 0),) * 3 + ((prompt_length, 0),), constant_values=True)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool mask as numbers to add to attention scores, as eager attention takes it."""
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min)
