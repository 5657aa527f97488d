"""Examples of each client: three flat arrays, cheap for many thousand clients and stored once for all workers.

Shape suffixes: N examples assigned to clients, C clients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shards:
    """Example numbers of all clients, one client after another; each client's training examples come first."""

    indices_N: np.ndarray
    """int64 example numbers; ascending within a client's training part and within its held-out part."""
    offsets_C1: np.ndarray
    """int64; client i owns the entries ``offsets_C1[i]`` to ``offsets_C1[i + 1]``."""
    train_stops_C: np.ndarray
    """int64; client i trains on the entries ``offsets_C1[i]`` to ``train_stops_C[i]`` and holds out the others."""

    def __post_init__(self) -> None:
        starts_C, stops_C = self.offsets_C1[:-1], self.offsets_C1[1:]
        if self.offsets_C1[0] != 0 or self.offsets_C1[-1] != len(self.indices_N):
            raise ValueError("offsets_C1 must begin with 0 and end with the number of indices")
        if len(self.train_stops_C) != len(starts_C):
            raise ValueError(f"there are {len(self.train_stops_C)} train stops for {len(starts_C)} clients")
        if (self.train_stops_C < starts_C).any() or (self.train_stops_C > stops_C).any():
            raise ValueError("a train stop lies outside its client's examples")

    @property
    def num_clients(self) -> int:
        """Number C of clients."""
        return len(self.train_stops_C)

    @property
    def train_sizes(self) -> np.ndarray:
        """int64 number of training examples of each client."""
        return self.train_stops_C - self.offsets_C1[:-1]

    @property
    def holdout_sizes(self) -> np.ndarray:
        """int64 number of held-out examples of each client."""
        return self.offsets_C1[1:] - self.train_stops_C

    @property
    def sizes(self) -> np.ndarray:
        """int64 number of all examples of each client."""
        return np.diff(self.offsets_C1)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.indices_N.nbytes + self.offsets_C1.nbytes + self.train_stops_C.nbytes

    def train(self, client: int) -> np.ndarray:
        """Return a view of the int64 example numbers that ``client`` trains on."""
        self._check(client)
        return self.indices_N[self.offsets_C1[client] : self.train_stops_C[client]]

    def holdout(self, client: int) -> np.ndarray:
        """Return a view of the int64 example numbers that ``client`` holds out for personalised evaluation."""
        self._check(client)
        return self.indices_N[self.train_stops_C[client] : self.offsets_C1[client + 1]]

    def label_counts(self, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the int64 table [clients, classes] of all examples, training and held out together.

        Parameters
        ----------
        labels_N
            Class number of each example of the dataset, in ``range(num_classes)``.
        """
        clients_N = np.repeat(np.arange(self.num_clients), self.sizes)
        cells_N = clients_N * num_classes + np.asarray(labels_N)[self.indices_N]
        return np.bincount(cells_N, minlength=self.num_clients * num_classes).reshape(self.num_clients, num_classes)

    def _check(self, client: int) -> None:
        # Without this a negative number would silently read another client's data.
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} is not in range({self.num_clients})")
