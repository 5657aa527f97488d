"""The texts of a pass, as tuners see them that put virtual tokens before each: without branches of label words.

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
from clients.tuners.moves import take_rows
from clients.tuners.virtual_tokens import Texts
from fedsim.core.tokens import PackedTokens
from fedsim.core.words import Branches


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
        lengths_B, trunk_Z = tokens.trunks_B, _trunk(tokens.lengths_B, tokens.branches, device)
        if trunk_Z is not None:
            rows = rows.of_lengths(lengths_B)
        words = self._words(_those(to_device(tokens.ids_Z, device), trunk_Z))
        summary_B = self._summary_rows(lengths_B, tokens.read_rows_B - tokens.starts_B)
        return lambda hidden_ZD: Texts(
            _those(hidden_ZD, trunk_Z), lengths_B, summary_B, owner_B, rows, words, output_BD
        )

    def padded(
        self, tokens: Tokens, owner_B: Tensor | None, plain: Callable[[], Tensor] | None
    ) -> tuple[np.ndarray, Callable[[Tensor], Texts]]:
        """Return the texts' lengths [B] and a function from hidden states [Z, D] to the texts of a padded pass.

        Parameters
        ----------
        plain
            Returns the plain model's last hidden states [B, T, D]; None if the tuner does not read them.
        """
        mask_BT, device = tokens.attention_mask_BT.bool(), tokens.attention_mask_BT.device
        lengths_B, read_B = mask_BT.sum(1).cpu().numpy(), tokens.read_positions_B.cpu().numpy()
        trunk_Z = _trunk(lengths_B, tokens.branches, device)
        trunks_B = lengths_B - (0 if tokens.branches is None else len(tokens.branches))
        output_BD = None
        if plain is not None:
            output_BD = plain()[mask_BT][to_device(self._summary_rows(lengths_B, read_B), device)]
        rows = PackedRows(owner_B, trunks_B)
        words = self._words(_those(tokens.input_ids_BT[mask_BT], trunk_Z))
        summary_B = self._summary_rows(trunks_B, read_B)
        return lengths_B, lambda hidden_ZD: Texts(
            _those(hidden_ZD, trunk_Z), trunks_B, summary_B, owner_B, rows, words, output_BD
        )

    def summary_rows(self, tokens: PackedTokens) -> np.ndarray:
        """Return the packed row of the token that stands for each text, int64 [B]."""
        return self._summary_rows(tokens.lengths_B, tokens.read_rows_B - tokens.starts_B)

    def _summary_rows(self, lengths_B: np.ndarray, read_positions_B: np.ndarray) -> np.ndarray:
        starts_B = np.cumsum(lengths_B) - lengths_B
        return starts_B + read_positions_B if self._is_causal else starts_B

    def _words(self, ids_Z: Tensor) -> Callable[[], Tensor]:
        return lambda: self._base.get_input_embeddings()(ids_Z)


def _trunk(lengths_B: np.ndarray, branches: Branches | None, device: torch.device) -> Tensor | None:
    """Return the rows of packed examples that are no branches; None if there are none."""
    if branches is None:
        return None
    before_Z = np.arange(int(lengths_B.sum())) - np.repeat(np.cumsum(lengths_B), lengths_B)
    return to_device(np.flatnonzero(before_Z < -len(branches)), device)


def _those(array_ZX: Tensor, rows: Tensor | None) -> Tensor:
    return array_ZX if rows is None else take_rows(array_ZX, rows)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Run a model as in evaluation."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
