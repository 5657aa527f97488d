"""Responses that a model has written to some examples, as token ids.

Shape suffixes: N examples, Z all tokens one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Generated:
    """Responses to examples of a table."""

    examples_N: np.ndarray
    """int64 numbers of the examples in their table."""
    lengths_N: np.ndarray
    """int64 tokens of each response, its end token included if it has one."""
    ids_Z: np.ndarray
    """int32 token ids, one response after another."""
    memory_splits: int = 0
    """Number of passes through the backbone split in two for lack of device memory."""

    @classmethod
    def of(cls, examples_N: np.ndarray, responses: Sequence[np.ndarray], memory_splits: int = 0) -> Generated:
        """Create from one array of ids an example."""
        ids_Z = np.concatenate([np.empty(0, np.int32), *responses]).astype(np.int32)
        lengths_N = np.array([len(ids) for ids in responses], dtype=np.int64)
        return cls(np.asarray(examples_N, dtype=np.int64), lengths_N, ids_Z, memory_splits)

    def __len__(self) -> int:
        return len(self.examples_N)

    def __add__(self, other: Generated) -> Generated:
        return Generated(
            np.concatenate((self.examples_N, other.examples_N)),
            np.concatenate((self.lengths_N, other.lengths_N)),
            np.concatenate((self.ids_Z, other.ids_Z)),
            self.memory_splits + other.memory_splits,
        )

    @property
    def responses(self) -> list[np.ndarray]:
        """The ids of each response."""
        return np.split(self.ids_Z, np.cumsum(self.lengths_N)[:-1]) if len(self) else []
