"""Label skew: splits each class over the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from partitions.base import PARTITIONERS, Partitioner, dirichlet


@PARTITIONERS.register("dirichlet_class")
class DirichletClass(Partitioner):
    """Cuts each class into parts whose shares are drawn from Dirichlet(alpha), one part per client.

    Yurochkin et al. 2019 (arXiv 1905.12022), section 4: sizes and labels are skewed together.
    """

    keys = ("alpha",)
    by_labels = True

    remedy = "raise partition.alpha, "

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        pieces: list[list[np.ndarray]] = [[] for _ in range(self.config.population)]
        for label in np.unique(labels_N):
            members = rng.permutation(np.flatnonzero(labels_N == label))
            shares_C = dirichlet(rng, self.config.alpha, (self.config.population,))
            cuts = np.floor(np.cumsum(shares_C)[:-1] * len(members) + 1e-9).astype(np.int64)
            for client, piece in enumerate(np.split(members, cuts)):
                pieces[client].append(piece)
        return [np.concatenate(client) for client in pieces]
