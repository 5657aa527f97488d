"""Beginnings that texts of one client share, computed once a pass: an instruction, a chat template, a prompt given twice.

In a causal model the hidden state of a token depends on it and the tokens before it alone. Where texts of a client begin alike,
all work but attention is done for the first of them; attention copies keys and values to where each text needs them, so that it
stays what it is. Gradients of a beginning are the sum of what its texts give.

Shape suffixes: B examples, Z packed tokens, N of them that are computed, U rows that are read, H heads, D head dimension or
hidden size, X all other axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clients.backbone.device import to_device
from clients.tuners.moves import spread_rows, take_rows
from clients.tuners.prefix import Attend, AttentionHook
from fedsim.core.tokens import PackedTokens

_LEAST_SAVED = 1 / 8
"""Share of a pass's tokens that must be saved. Below it, copies in attention may cost more than the layers save; a token that
opens every text, as LLaMA's does, is no reason."""


@dataclass(frozen=True)
class SharedBeginnings:
    """Which tokens of a pass are computed, and where the others are found."""

    first_N: np.ndarray
    """int64; rows of the packed batch that are computed, ascending: of each text what no earlier one of its client has."""
    places_Z: np.ndarray
    """int64; place in ``first_N`` of each token of the batch."""
    own_B: np.ndarray
    """int64; tokens of each example that are computed, its last ones; 0 for the same text again."""
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokens: PackedTokens, client_of_example_B: np.ndarray | None) -> SharedBeginnings | None:
        """Return what the texts of each client share; None where that is less than an eighth of the pass.

        Parameters
        ----------
        client_of_example_B
            int64 client of each example; None where there is one client.
        """
        row_Z = _first_rows(tokens, client_of_example_B)
        computed_Z = row_Z == np.arange(len(row_Z))
        first_N = np.flatnonzero(computed_Z)
        if len(row_Z) - len(first_N) < _LEAST_SAVED * len(row_Z):
            return None
        places_Z = np.searchsorted(first_N, row_Z)
        ends_B = np.cumsum(tokens.lengths_B)
        until_Z1 = np.concatenate([[0], np.cumsum(computed_Z)])
        return cls(first_N, places_Z, until_Z1[ends_B] - until_Z1[tokens.starts_B])

    def rows_read(self, rows_U: np.ndarray) -> np.ndarray:
        """Return the computed rows that stand for some of the batch, int64, each once and ascending."""
        return np.unique(self.places_Z[rows_U])

    def examples_of(self, rows_U: np.ndarray) -> np.ndarray:
        """Return the int64 example that computes each of some rows."""
        return np.searchsorted(np.cumsum(self.own_B), rows_U, side="right")

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ``first_N`` and ``places_Z`` on a device; copied once for all layers of a pass."""
        if device not in self._on:
            self._on[device] = to_device(self.first_N, device), to_device(self.places_Z, device)
        return self._on[device]

    def spread_read(self, tensor_UX: Tensor, rows_U: np.ndarray) -> Tensor:
        """Return the rows ``rows_U`` of the batch, given those of :meth:`rows_read`."""
        _, places_U = np.unique(self.places_Z[rows_U], return_inverse=True)
        return spread_rows(tensor_UX, to_device(places_U, tensor_UX.device))

    def spread(self, tensor_NX: Tensor) -> Tensor:
        """Return the rows of all tokens, [Z, X]."""
        return spread_rows(tensor_NX, self.on(tensor_NX.device)[1])


class SharedAttention:
    """Attention of a pass that computes shared beginnings once: that of all its tokens.

    Parameters
    ----------
    inner
        Attention over the packed tokens of all texts.
    """

    def __init__(self, inner: AttentionHook, shared: SharedBeginnings) -> None:
        self._inner, self._shared = inner, shared

    def attend(
        self,
        plain: Attend,
        module: nn.Module,
        query_1HND: Tensor,
        key_1HND: Tensor,
        value_1HND: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as the texts would alone; returns the computed rows, [1, N, H, D]."""
        spread = (self._spread(tensor_1HND) for tensor_1HND in (query_1HND, key_1HND, value_1HND))
        output_1ZHD, weights = self._inner.attend(plain, module, *spread, mask, **kwargs)
        return take_rows(output_1ZHD[0], self._shared.on(output_1ZHD.device)[0]).unsqueeze(0), weights

    def _spread(self, tensor_1HND: Tensor) -> Tensor:
        return self._shared.spread(tensor_1HND[0].transpose(0, 1)).transpose(0, 1).unsqueeze(0)


def _first_rows(tokens: PackedTokens, client_of_example_B: np.ndarray | None) -> np.ndarray:
    """Return for each token the row of the first one with the same client and the same text up to it, int64 [Z].

    Branches behind a text are never shared: what they see depends on where the text ends.
    """
    starts_B, lengths_B = tokens.starts_B, tokens.trunks_B
    row_Z = np.arange(len(tokens.ids_Z))
    alike = np.arange(len(lengths_B))
    group = np.zeros_like(alike) if client_of_example_B is None else client_of_example_B.astype(np.int64)
    words = int(tokens.ids_Z.max()) + 1
    inputs_Z, kinds = tokens.ids_Z, words
    if tokens.types_Z is not None:
        inputs_Z, kinds = tokens.ids_Z + words * tokens.types_Z, words * (int(tokens.types_Z.max()) + 1)
    place = 0
    while True:
        longer = lengths_B[alike] > place
        alike, group = alike[longer], group[longer]
        rows = starts_B[alike] + place
        _, first, group, sizes = np.unique(
            group * kinds + inputs_Z[rows], return_index=True, return_inverse=True, return_counts=True
        )
        together = sizes[group] > 1
        if not together.any():
            return row_Z
        row_Z[rows] = rows[first[group]]
        alike, group = alike[together], group[together]
        place += 1
