"""Batches of documents with masked tokens.

Shape suffixes: B documents, T tokens, M masked tokens of a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fedsim.assets.pretraining.text import Document, documents
from fedsim.assets.pretraining.tokenizer import SPECIAL_TOKENS

POOL_BATCHES = 16
"""Batches drawn together and sorted by length, to save padding."""


@dataclass(frozen=True)
class Masking:
    """Which tokens are masked, and how."""

    slot_rate: float
    """Share of documents in which only the slot is masked; in the others each token is, with probability ``token_rate``."""
    token_rate: float
    keep_rate: float
    """Share of masked tokens that are left unchanged instead of ``<mask>``."""
    random_rate: float
    """Share of masked tokens that become a random token instead of ``<mask>``."""
    shift_rate: float
    """Share of batches whose positions start later, as after a prefix that takes up positions."""
    max_shift: int
    """Latest such start."""


@dataclass(frozen=True)
class Batch:
    """Documents with masked tokens."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor
    hidden_BT: Tensor
    """bool; the tokens to predict."""
    targets_M: Tensor
    """int64; their original tokens, row by row."""


class Encoder:
    """Tokenises documents, looking up each word once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._tokens_of_word: dict[str, list[int]] = {}

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in text.split():
            if word not in self._tokens_of_word:
                self._tokens_of_word[word] = self.tokenizer.encode(" " + word, add_special_tokens=False)
            ids += self._tokens_of_word[word]
        return ids

    def encode(self, document: Document) -> tuple[list[int], int]:
        """Return a document's tokens, special ones included, and the position of its slot."""
        before = [self.tokenizer.bos_token_id, *self._tokens(document.before)]
        after = [*self._tokens(document.after), self.tokenizer.eos_token_id]
        return before + self._tokens(document.slot) + after, len(before)


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, masking: Masking, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yield batches of ``size`` fresh documents without end."""
    encoder, source = Encoder(tokenizer), documents(rng)
    while True:
        pool = [encoder.encode(document) for document in itertools.islice(source, size * POOL_BATCHES)]
        pool.sort(key=lambda item: len(item[0]))
        for number in rng.permutation(POOL_BATCHES):
            yield _masked(pool[number * size : (number + 1) * size], tokenizer, masking, rng)


def _masked(
    encoded: list[tuple[list[int], int]],
    tokenizer: PreTrainedTokenizerFast,
    masking: Masking,
    rng: np.random.Generator,
) -> Batch:
    """Pad encoded documents and mask some of their tokens."""
    pad = tokenizer.pad_token_id
    lengths_B = np.array([len(ids) for ids, _ in encoded])
    ids_BT = np.full((len(encoded), lengths_B.max()), pad)
    hidden_BT = np.zeros(ids_BT.shape, dtype=bool)
    slot_only_B = rng.random(len(encoded)) < masking.slot_rate
    for row, (ids, slot) in enumerate(encoded):
        ids_BT[row, : len(ids)] = ids
        if slot_only_B[row]:
            hidden_BT[row, slot] = True
        else:
            hidden_BT[row, 1 : len(ids) - 1] = rng.random(len(ids) - 2) < masking.token_rate
    fate_BT = rng.random(ids_BT.shape)
    random_BT = hidden_BT & (fate_BT >= 1.0 - masking.random_rate)
    shown_BT = np.where(hidden_BT & (fate_BT >= masking.keep_rate), tokenizer.mask_token_id, ids_BT)
    shown_BT[random_BT] = rng.integers(len(SPECIAL_TOKENS), len(tokenizer), int(random_BT.sum()))
    steps_T = np.arange(ids_BT.shape[1])
    present_BT = steps_T[None, :] < lengths_B[:, None]
    shift = int(rng.integers(1, masking.max_shift + 1)) if rng.random() < masking.shift_rate else 0
    return Batch(
        input_ids_BT=torch.from_numpy(shown_BT),
        attention_mask_BT=torch.from_numpy(present_BT.astype(np.int64)),
        position_ids_BT=torch.from_numpy(np.where(present_BT, steps_T[None, :] + pad + 1 + shift, pad)),
        hidden_BT=torch.from_numpy(hidden_BT),
        targets_M=torch.from_numpy(ids_BT[hidden_BT]),
    )
