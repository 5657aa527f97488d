"""Heads: class scores and losses from the backbone's last hidden states.

Shape suffixes: B examples, T tokens, Z packed tokens, D hidden size, V vocabulary size; C is classes in
``logits_BC`` and ``label_word_ids_C``, clients in ``head_C``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.backbone.device import to_device
from clients.backbone.families import Family
from fedsim.core.errors import ModelError
from fedsim.core.reads import Reads
from fedsim.core.tokens import PackedTokens
from fedsim.core.words import Branches

HeadShapes = tuple[tuple[str, tuple[int, ...]], ...]

Pooling = Literal["first", "mean", "last"]
"""Hidden state that represents an example: its first token's, the mean over its tokens, or the read position's."""


@dataclass(frozen=True)
class Reading:
    """Losses and class scores of a batch."""

    loss_B: Tensor
    """float32 cross-entropy of each example, or the mean over its response's tokens; differentiable."""
    logits_BC: Tensor
    """float32 class scores; [B, 0] where there are no classes."""
    hits_B: Tensor | None = None
    """int64; tokens of each response that are the most likely ones where they stand. None where there are classes."""


@dataclass(frozen=True)
class Tokens:
    """A batch on the backbone's device; the fields are those of ``fedsim.core.tokens.TokenBatch``."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    token_type_ids_BT: Tensor | None
    read_positions_B: Tensor
    labels_B: Tensor
    branches: Branches | None = None


class Head(Protocol):
    """Reads class scores."""

    shapes: HeadShapes
    """Arrays of this head that clients train."""
    pooling: Pooling
    """Which of the backbone's last hidden states it reads."""

    def read(
        self, pooled_BD: Tensor, labels_B: Tensor, head_C: dict[str, Tensor], client_of_example_B: Tensor | None
    ) -> Reading:
        """Return loss and class scores of each example.

        Parameters
        ----------
        pooled_BD
            The backbone's last hidden states, pooled by ``pooling``.
        labels_B
            int64 class numbers.
        head_C
            The trained arrays of each client, [clients, *shape] each.
        client_of_example_B
            Row of ``head_C`` for each example; None if there is one client.
        """
        ...


@runtime_checkable
class TokenHead(Protocol):
    """Reads several tokens of each example."""

    shapes: HeadShapes
    """As of :class:`Head`."""
    pooling: Pooling
    """``last``: which single token stands for a text."""

    def read_tokens(self, hidden_UD: Tensor, reads: Reads, labels_B: Tensor) -> Reading:
        """Return loss and scores of each example from the last hidden states of ``reads.rows_U``."""
        ...


class Verbalizer:
    """Scores of the label words at the read position, by the backbone's own frozen LM head.

    Parameters
    ----------
    transform
        The LM head without its last linear layer.
    decoder
        Its last linear layer.
    label_word_ids_C
        Token id of each class's word.
    loss
        ``labels``: cross-entropy over the label words; ``vocabulary``: over all words, as in the published code.
    cap
        Bound c of the scores, c tanh(score / c); None for none.
    """

    shapes: HeadShapes = ()
    pooling: Pooling = "last"

    def __init__(
        self,
        transform: Callable[[Tensor], Tensor],
        decoder: nn.Linear,
        label_word_ids_C: Tensor,
        loss: Literal["labels", "vocabulary"],
        cap: float | None = None,
    ) -> None:
        self._cap = cap
        self._transform = transform
        self._decoder = decoder
        self._label_word_ids_C = label_word_ids_C
        self._loss = loss
        self.offset_C: Tensor | None = None
        """Class scores to subtract; see ``model.head.calibration``."""
        self._label_weight_CD = decoder.weight.detach()[label_word_ids_C]
        self._label_bias_C = None if decoder.bias is None else decoder.bias.detach()[label_word_ids_C]

    def read(
        self, pooled_BD: Tensor, labels_B: Tensor, head_C: dict[str, Tensor], client_of_example_B: Tensor | None
    ) -> Reading:
        """Return loss and class scores; the LM head runs on one token per example, ``labels`` on C words only."""
        hidden_BD = self._transform(pooled_BD)
        if self._loss == "labels":
            logits_BC = self._capped(functional.linear(hidden_BD, self._label_weight_CD, self._label_bias_C))
            logits_BC = self._calibrated(logits_BC)
            return Reading(functional.cross_entropy(logits_BC, labels_B, reduction="none"), logits_BC)
        logits_BV = self._capped(self._decoder(hidden_BD))
        word_B = self._label_word_ids_C[labels_B]
        logits_BC = self._calibrated(logits_BV[:, self._label_word_ids_C])
        return Reading(functional.cross_entropy(logits_BV, word_B, reduction="none"), logits_BC)

    def _calibrated(self, logits_BC: Tensor) -> Tensor:
        return logits_BC if self.offset_C is None else logits_BC - self.offset_C

    def _capped(self, logits: Tensor) -> Tensor:
        """Return scores in float32, bounded as the family's LM head does."""
        logits = _single(logits)
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


def label_words(label_word_ids_C: np.ndarray | None, num_classes: int, vocab_size: int, device: torch.device) -> Tensor:
    """Return the token id of each class's word on a device.

    Raises
    ------
    ModelError
        If there is not one per class, or the model lacks it.
    """
    if label_word_ids_C is None or len(label_word_ids_C) != num_classes:
        given = 0 if label_word_ids_C is None else len(label_word_ids_C)
        raise ModelError(
            f"model.head.kind=verbalizer needs one label word for each of {num_classes} classes, got {given}"
        )
    if int(label_word_ids_C.min()) < 0 or int(label_word_ids_C.max()) >= vocab_size:
        raise ModelError(
            f"a label word has token id {int(label_word_ids_C.max())}, but the model knows {vocab_size} words; use the "
            "model's own tokenizer"
        )
    return to_device(np.array(label_word_ids_C, dtype=np.int64), device)


class Classifier:
    """Class scores by a linear layer on pooled hidden states, trained and exchanged with the prompt.

    Parameters
    ----------
    num_classes, hidden_size
        Shape of the layer.
    pooling
        Hidden states to classify: of the first token, their mean over tokens, or of the read position (last).
    """

    def __init__(self, num_classes: int, hidden_size: int, pooling: Pooling) -> None:
        self.shapes: HeadShapes = (("head.weight", (num_classes, hidden_size)), ("head.bias", (num_classes,)))
        self.pooling = pooling

    def read(
        self, pooled_BD: Tensor, labels_B: Tensor, head_C: dict[str, Tensor], client_of_example_B: Tensor | None
    ) -> Reading:
        """Return loss and class scores, in float32 whatever the backbone's number format."""
        pooled_BD = _single(pooled_BD)
        weight_CcD, bias_Cc = head_C["head.weight"], head_C["head.bias"]
        if len(weight_CcD) == 1:
            logits_BC = functional.linear(pooled_BD, weight_CcD[0], bias_Cc[0])
        else:
            weight_BcD, bias_Bc = weight_CcD[client_of_example_B], bias_Cc[client_of_example_B]
            logits_BC = torch.baddbmm(bias_Bc.unsqueeze(2), weight_BcD, pooled_BD.unsqueeze(2)).squeeze(2)
        return Reading(functional.cross_entropy(logits_BC, labels_B, reduction="none"), logits_BC)


def pool(hidden_BTD: Tensor, tokens: Tokens, pooling: Pooling) -> Tensor:
    """Return the pooled hidden states [B, D] of a padded batch."""
    if pooling == "first":
        return hidden_BTD[:, 0]
    if pooling == "last":
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), tokens.read_positions_B]
    token_BT1 = tokens.attention_mask_BT.unsqueeze(2).to(hidden_BTD.dtype)
    return (hidden_BTD * token_BT1).sum(1) / token_BT1.sum(1)


def pool_packed(hidden_ZD: Tensor, tokens: PackedTokens, pooling: Pooling) -> Tensor:
    """Return the pooled hidden states [B, D] of packed tokens."""
    device = hidden_ZD.device
    if pooling != "mean":
        return hidden_ZD[to_device(pooled_rows(tokens, pooling), device)]
    # Padded again: a matrix product over all tokens would spread a non-finite number from one example to all others.
    places_T = np.arange(int(tokens.lengths_B.max()))
    own_BT = places_T < tokens.lengths_B[:, None]
    rows_BT = tokens.starts_B[:, None] + np.where(own_BT, places_T, 0)
    own_BT1 = to_device(own_BT, device).unsqueeze(2).to(hidden_ZD.dtype)
    return (hidden_ZD[to_device(rows_BT, device)] * own_BT1).sum(1) / own_BT1.sum(1)


def pooled_rows(tokens: PackedTokens, pooling: Pooling) -> np.ndarray:
    """Return the int64 row [B] of the one token of each example that ``first`` or ``last`` reads."""
    return tokens.starts_B if pooling == "first" else tokens.read_rows_B


def resolve_pooling(asked: Literal["auto", "first", "mean", "last"], family: Family) -> Pooling:
    """Resolve the pooling: ``auto`` is that of the family."""
    return family.pooling if asked == "auto" else asked


def check_pooling(pooling: Pooling, *, is_causal: bool) -> None:
    """Refuse pooling at the first token of a model in which it sees no other token.

    Raises
    ------
    ModelError
        If attention is causal.
    """
    if pooling == "first" and is_causal:
        raise ModelError(
            "model.head.pooling=first cannot be used with a decoder, whose first token sees no text; use last"
        )


def _single(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, the minimum for losses."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
