"""IID clients: random samples of equal size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from partitions.base import PARTITIONERS, Partitioner


@PARTITIONERS.register("iid")
class Iid(Partitioner):
    """Shuffles the examples and cuts them into parts whose sizes differ by at most one."""

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        return np.array_split(rng.permutation(len(labels_N)), self.config.population)
