"""Predictions of an encoder that fills the masks of label words one after the other: PET's rule.

Training reads all masks in one pass, as PET does; see :mod:`clients.backbone.word_head`.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, B examples, R reads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.backbone.heads import Reading
from clients.backbone.word_head import WordHead
from fedsim.core.filled_masks import FilledMasks
from fedsim.core.tokens import PackedTokens


@torch.no_grad()
def read_stepwise(
    head: WordHead,
    log_likelihoods: Callable[[PackedTokens, np.ndarray | None], Tensor],
    tokens: PackedTokens,
    client_of_example_B: np.ndarray | None,
) -> Reading:
    """Return losses and class scores of examples; every pass has the texts of all words of all examples.

    Parameters
    ----------
    log_likelihoods
        Returns what the model says of the targets of some texts, [R], given the client of each text.
    tokens
        Examples with as many masks as the longest word has tokens.
    client_of_example_B
        int64 row of each example in what is trained; None if there is one client.
    """
    masks = FilledMasks(tokens, head.words)
    device, dtype = None, None
    while masks.left:
        texts, example_V = masks.texts()
        owner_V = None if client_of_example_B is None else client_of_example_B[example_V]
        logp_R = log_likelihoods(texts, owner_V)
        device, dtype = logp_R.device, logp_R.dtype
        masks.fill(logp_R.cpu().numpy())
    scores_BC = torch.from_numpy(masks.class_scores()).to(device, dtype)
    return head.reading(scores_BC, to_device(tokens.labels_B, scores_BC.device), head.stepwise_offset_C)
