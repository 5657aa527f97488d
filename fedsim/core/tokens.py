"""The columnar token table: a tokenised dataset as a few flat arrays, stored once and mapped by every worker.

Shape suffixes: N examples, Z all tokens, B examples of a batch, T tokens of the batch's longest example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch; padding stands on the right."""

    input_ids_BT: np.ndarray
    """int64."""
    attention_mask_BT: np.ndarray
    """int64; 1 for a token, 0 for padding."""
    token_type_ids_BT: np.ndarray | None
    """int64; 0 and 1 for the two texts of a pair, or None where the model has no such input."""
    read_positions_B: np.ndarray
    """int64; position of the mask token, or of the last token."""
    labels_B: np.ndarray
    """int64 class numbers."""


@dataclass(frozen=True)
class TokenTable:
    """A tokenised dataset; example i owns the tokens ``offsets_N1[i]`` to ``offsets_N1[i + 1]``."""

    ids_Z: np.ndarray
    """int32 token ids."""
    offsets_N1: np.ndarray
    """int64, one more than examples."""
    read_positions_N: np.ndarray
    """int32; position of the mask or last token within its example."""
    labels_N: np.ndarray
    """int64 class numbers."""
    pad_id: int
    """Token id that fills up a batch."""
    type_ids_Z: np.ndarray | None = None
    """uint8 token types, or None."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def lengths_N(self) -> np.ndarray:
        """int64 number of tokens of each example."""
        return np.diff(self.offsets_N1)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.ids_Z, self.offsets_N1, self.read_positions_N, self.labels_N, self.type_ids_Z)
        return sum(array.nbytes for array in arrays if array is not None)

    def batch(self, indices_B: np.ndarray) -> TokenBatch:
        """Return the examples ``indices_B``, in that order, padded to the longest of them."""
        starts_B = self.offsets_N1[indices_B]
        lengths_B = self.offsets_N1[indices_B + 1] - starts_B
        steps_T = np.arange(int(lengths_B.max()))
        mask_BT = steps_T[None, :] < lengths_B[:, None]
        flat = (starts_B[:, None] + steps_T[None, :])[mask_BT]
        ids_BT = np.full(mask_BT.shape, self.pad_id, dtype=np.int64)
        ids_BT[mask_BT] = self.ids_Z[flat]
        types_BT = None
        if self.type_ids_Z is not None:
            types_BT = np.zeros(mask_BT.shape, dtype=np.int64)
            types_BT[mask_BT] = self.type_ids_Z[flat]
        return TokenBatch(
            input_ids_BT=ids_BT,
            attention_mask_BT=mask_BT.astype(np.int64),
            token_type_ids_BT=types_BT,
            read_positions_B=self.read_positions_N[indices_B].astype(np.int64),
            labels_B=self.labels_N[indices_B].astype(np.int64),
        )
