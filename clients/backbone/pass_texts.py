"""The texts of a pass, as tuners see them that put virtual tokens before each.

Shape suffixes: B examples, T tokens, Z packed tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clients.backbone.device import to_device
from clients.backbone.heads import Tokens
from clients.tuners.client_rows import PackedRows
from clients.tuners.virtual_tokens import Texts
from fedsim.core.tokens import PackedTokens


class PassTexts:
    """Describes packed and padded texts to a tuner.

    Parameters
    ----------
    base
        The frozen model.
    is_causal
        Whether attention is causal: the token that stands for a text is then the last read one, else the first.
    """

    def __init__(self, base: nn.Module, *, is_causal: bool) -> None:
        self._base: Any = base
        self._is_causal = is_causal

    def packed(
        self,
        tokens: PackedTokens,
        owner_B: Tensor | None,
        rows: PackedRows,
        output_BD: Tensor | None,
        device: torch.device,
    ) -> Callable[[Tensor], Texts]:
        """Return a function from hidden states [Z, D] to the texts of a packed pass."""
        words = self._words(to_device(tokens.ids_Z, device))
        summary_B = self.summary_rows(tokens)
        return lambda hidden_ZD: Texts(hidden_ZD, tokens.lengths_B, summary_B, owner_B, rows, words, output_BD)

    def padded(
        self, tokens: Tokens, owner_B: Tensor | None, plain: Callable[[], Tensor] | None
    ) -> tuple[np.ndarray, Callable[[Tensor], Texts]]:
        """Return the texts' lengths [B] and a function from hidden states [Z, D] to the texts of a padded pass.

        Parameters
        ----------
        plain
            Returns the plain model's last hidden states [B, T, D]; None if the tuner does not read them.
        """
        mask_BT = tokens.attention_mask_BT.bool()
        lengths_B = mask_BT.sum(1).cpu().numpy()
        summary_B = self._summary_rows(lengths_B, tokens.read_positions_B.cpu().numpy())
        device = mask_BT.device
        output_BD = None if plain is None else plain()[mask_BT][to_device(summary_B, device)]
        rows = PackedRows(owner_B, lengths_B, device)
        words = self._words(tokens.input_ids_BT[mask_BT])
        return lengths_B, lambda hidden_ZD: Texts(hidden_ZD, lengths_B, summary_B, owner_B, rows, words, output_BD)

    def summary_rows(self, tokens: PackedTokens) -> np.ndarray:
        """Return the packed row of the token that stands for each text, int64 [B]."""
        return self._summary_rows(tokens.lengths_B, tokens.read_rows_B - tokens.starts_B)

    def _summary_rows(self, lengths_B: np.ndarray, read_positions_B: np.ndarray) -> np.ndarray:
        starts_B = np.cumsum(lengths_B) - lengths_B
        return starts_B + read_positions_B if self._is_causal else starts_B

    def _words(self, ids_Z: Tensor) -> Callable[[], Tensor]:
        return lambda: self._base.get_input_embeddings()(ids_Z)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Run a model as in evaluation."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
