"""Clients of unequal size, with labels as in the whole dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from partitions.base import PARTITIONERS, Partitioner, apportion, dirichlet


@PARTITIONERS.register("dirichlet_quantity")
class DirichletQuantity(Partitioner):
    """Draws the clients' shares of the examples from Dirichlet(alpha) and deals shuffled examples."""

    keys = ("alpha",)

    remedy = "raise partition.alpha, "

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        sizes_C = apportion(dirichlet(rng, self.config.alpha, (self.config.population,)), len(labels_N))
        return np.split(rng.permutation(len(labels_N)), np.cumsum(sizes_C)[:-1])
