"""Blocks of a vector that have one scale each.

Shape suffixes: F entries of a vector, B blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.core.layout import VectorLayout


@dataclass(frozen=True, eq=False)
class Blocks:
    """Consecutive blocks of a vector, none of them empty."""

    size: int
    """Entries of the vector."""
    starts_B: np.ndarray
    """int64, ascending from 0."""

    @classmethod
    def of(cls, layout: VectorLayout) -> Blocks:
        """Return one block for each array of each layer, and for each array of the head: the unit ``layer``."""
        sizes = [part.stop - part.start for part in layout.slices().values()]
        return cls.of_sizes([*sizes, *(math.prod(shape) for _, shape in layout.head_shapes)])

    @classmethod
    def of_sizes(cls, sizes: list[int]) -> Blocks:
        """Return blocks of these sizes."""
        ends = np.cumsum([0, *(size for size in sizes if size)], dtype=np.int64)
        return cls(int(ends[-1]), ends[:-1])

    def every(self, length: int) -> Blocks:
        """Return blocks of ``length`` entries, the last of the rest, in place of these."""
        return Blocks(self.size, np.arange(0, self.size, length, dtype=np.int64))

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.starts_B)

    @property
    def sizes_B(self) -> np.ndarray:
        """Entries of each block."""
        return np.diff(self.starts_B, append=self.size)

    def largest(self, array_F: np.ndarray) -> np.ndarray:
        """Return the largest entry of each block."""
        return np.maximum.reduceat(array_F, self.starts_B) if self.count else array_F[:0]

    def means(self, array_F: np.ndarray) -> np.ndarray:
        """Return the mean of each block, float64."""
        if not self.count:
            return np.empty(0)
        means_B: np.ndarray = np.add.reduceat(array_F, self.starts_B, dtype=np.float64) / self.sizes_B
        return means_B

    def spread(self, values_B: np.ndarray) -> np.ndarray:
        """Return each block's value in all its entries."""
        return np.repeat(values_B, self.sizes_B)
