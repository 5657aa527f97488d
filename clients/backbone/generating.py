"""Generation: texts are continued token by token, several clients side by side.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, N texts, B those of a pass, D hidden size, V
vocabulary size, S new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from clients.backbone.cached_passes import GrowingTexts
from clients.backbone.choosing import choose
from clients.backbone.passes import PassLimit, run_passes
from clients.backbone.tuned_model import TunedModel
from fedsim.core.decoding import Decoding
from fedsim.core.errors import ModelError

Scores = Callable[[Tensor], Tensor]
"""Maps last hidden states [B, D] to scores of the vocabulary [B, V]."""


def refuse_generation(parts: TunedModel, *, predicts_next: bool) -> None:
    """Refuse what cannot write text.

    Raises
    ------
    ModelError
        If the model predicts no next token, or sees later ones, or the tuner's prompt depends on the whole text.
    """
    if not predicts_next:
        raise ModelError("an encoder fills masks and cannot generate text; use a decoder")
    if not parts.is_causal:
        raise ModelError(
            "a decoder with is_causal: false in its config.json sees later tokens and cannot generate text"
        )
    if parts.tuner.reads_text:
        raise ModelError(
            f"tuner {parts.tuner.described} is made of a whole text, of which generation knows only the beginning; use a tuner "
            "that does not read the text, such as lora or prefix"
        )


def generate(
    parts: TunedModel,
    scores: Scores,
    texts: Sequence[np.ndarray],
    tuned: tuple[Tensor, tuple[int, ...]],
    client_of_text_N: np.ndarray | None,
    decoding: Decoding,
    uniform_NS: np.ndarray | None,
    max_tokens: int,
    batch_size: int,
    limit: PassLimit,
) -> list[np.ndarray]:
    """Continue texts; return the new tokens of each, int64, up to an end token or the most that is allowed.

    Parameters
    ----------
    tuned
        Trained numbers of each client [C, L, X], and the model layer of each.
    client_of_text_N
        int64 row of the trained numbers for each text; None with one client.
    uniform_NS
        Numbers in [0, 1) that choose each text's tokens; needed to sample.
    max_tokens
        Most tokens of a text together with what is written.
    batch_size, limit
        Most texts of a pass, and most tokens, all new ones included.
    """
    lengths_N = np.array([len(text) for text in texts], dtype=np.int64)
    new_N = np.minimum(decoding.max_new_tokens, max_tokens - lengths_N)
    written: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(texts)
    order_N = np.argsort(lengths_N, kind="stable")
    order_N = order_N[new_N[order_N] > 0]
    if not len(order_N):
        return written

    def run(piece: slice) -> None:
        rows_B = order_N[piece]
        growing = GrowingTexts(
            parts,
            [texts[row] for row in rows_B],
            *tuned,
            None if client_of_text_N is None else client_of_text_N[rows_B],
        )
        uniform_BS = None if uniform_NS is None else uniform_NS[rows_B]
        for row, tokens in zip(rows_B, _written(growing, scores, new_N[rows_B], decoding, uniform_BS), strict=True):
            written[row] = np.array(tokens, dtype=np.int64)

    whole_N, size = (lengths_N + new_N)[order_N], len(order_N)
    with torch.inference_mode():
        pieces = [slice(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
        # The longest come first, so that all later passes find room in what they leave.
        run_passes(whole_N, pieces[::-1], limit, run)
    return written


def _written(
    growing: GrowingTexts, scores: Scores, new_B: np.ndarray, decoding: Decoding, uniform_BS: np.ndarray | None
) -> list[list[int]]:
    """Return the new tokens of each text of a pass; a text leaves the pass with its last token."""
    tokens: list[list[int]] = [[] for _ in new_B]
    going = np.arange(len(new_B))
    hidden_BD = growing.read()
    for step in range(int(new_B.max())):
        next_B = choose(scores(hidden_BD), decoding, None if uniform_BS is None else uniform_BS[going, step])
        for row, token in zip(going.tolist(), next_B.tolist(), strict=True):
            tokens[row].append(token)
        goes_on = ~np.isin(next_B, decoding.end_ids) & (step + 1 < new_B[going])
        if not goes_on.any():
            break
        if not goes_on.all():
            growing.keep(goes_on)
            going, next_B = going[goes_on], next_B[goes_on]
        hidden_BD = growing.grow(next_B)
    return tokens
