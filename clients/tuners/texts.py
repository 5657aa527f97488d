"""Virtual tokens as a tuner gives them, and the texts that it gives them for.

Shape suffixes: B examples, Z packed tokens, P virtual tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from clients.tuners.client_rows import PackedRows


@dataclass(frozen=True)
class Texts:
    """The texts of a pass where virtual tokens enter, packed."""

    hidden_ZD: Tensor
    """Their hidden states there."""
    lengths_B: np.ndarray
    """int64; tokens of each example."""
    summary_rows_B: np.ndarray
    """int64; row of the token that stands for each example: the first in encoders, the last in decoders."""
    owner_B: Tensor | None
    """int64; row of each example's client in the trained numbers; None where there is one client."""
    rows: PackedRows
    """Maps rows by their clients' arrays."""
    words: Callable[[], Tensor]
    """Returns their input embeddings [Z, D]."""
    output_BD: Tensor | None
    """Last hidden state in the plain model of the token that stands for each example, for tuners that read it."""

    def own(self, array_CX: Tensor) -> Tensor:
        """Return each example's array of its client, [B, X]."""
        if self.owner_B is None:
            return array_CX.expand(len(self.lengths_B), *array_CX.shape[1:])
        # Indexing, not index_select: on a GPU only its gradient adds up in a fixed order.
        return array_CX[self.owner_B]


@dataclass(frozen=True)
class VirtualTokens:
    """What a tuner puts before each text."""

    depth: int
    """Layer at whose input they enter."""
    length: int
    """P."""
    vectors: Callable[[Texts], Tensor]
    """Returns the vectors of each example, [B, P, D]."""
    embedded: bool = False
    """They are input embeddings, to which the model adds its positions; else hidden states."""
