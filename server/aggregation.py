"""Folding the groups' sums into the averages of a round, always in the same order.

Shape suffixes: F entries of the exchanged vector, k clients in draw order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedsim.core.errors import ClientError
from fedsim.core.messages import VECTOR, BlockUpdate, CombinedUpdate, GroupUpdate
from server.blocks import BLOCK_GROUPS, BlockSum, Roll, Sums, place

Average = Callable[[Mapping[str, np.ndarray], float], np.ndarray]
"""Maps a round's sums by name and the sum of the weights to one vector [F]."""


def mean(sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
    """Return the weighted mean of the clients' vectors."""
    average_F: np.ndarray = sums[VECTOR] / weight_sum
    return average_F


class Fold:
    """The running sums of a round in float64; each update is read once and then released.

    Parts of a group are added from left to right, starting from zeros, then the groups of a block in the same way, then the
    blocks. A worker adds its clients in the same order, so a group gives the same bits whether it arrives as one part or as
    one part per client, and a block gives the same bits whether it is summed here or elsewhere
    (:func:`server.blocks.add_to_block`).
    """

    def __init__(self) -> None:
        self._roll = Roll()
        self._block = BlockSum(-1)
        self._rejected: list[int] = []
        self._clients: list[int] = []
        self._steps = 0
        self._bits = 0.0
        self._total = Sums()
        self._each: dict[str, list[np.ndarray]] = {}
        self._weights: list[np.ndarray] = []

    @property
    def rejected(self) -> list[int]:
        """Clients left out of the closed blocks because their sums were not finite, in the order of their updates."""
        return list(self._rejected)

    def add(self, update: GroupUpdate | BlockUpdate) -> None:
        """Add a group, a part, or the sums of a block's first groups; updates must come in order.

        Raises
        ------
        ValueError
            If it does not fit the others: another round or length, a client twice, or out of order.
        """
        if isinstance(update, BlockUpdate):
            self._roll.admit(update)
            self._close_block()
            self._block = BlockSum.of(update)
        elif update.clients:
            self._roll.admit(update)
            if (block := update.group // BLOCK_GROUPS) != self._block.block:
                self._close_block()
                self._block = BlockSum(block)
            self._block.add(update)

    def result(self, order: Sequence[int], average: Average = mean) -> CombinedUpdate:
        """Return the sums and the clients' combined vector.

        Parameters
        ----------
        order
            The cohort in draw order. It may hold clients that are in no update because they failed.
        average
            Combines the clients' vectors.

        Raises
        ------
        ClientError
            If no update is usable.
        ValueError
            If a client is not in the cohort, or the cohort names one twice.
        """
        drawn = {int(client) for client in order}
        if len(drawn) != len(order):
            raise ValueError("order names a client twice")
        if strangers := self._roll.seen - drawn:
            raise ValueError(f"an update holds client {min(strangers)}, which is not in the cohort")
        self._close_block()
        weight_sum, sums = self._total.weight, self._total.arrays
        if not weight_sum > 0:
            raise ClientError(self._nothing_usable())
        usable = set(self._clients)
        clients = tuple(int(client) for client in order if int(client) in usable)
        rows = {client: row for row, client in enumerate(clients)}
        rows_k = np.array([rows[client] for client in self._clients])
        return CombinedUpdate(
            round=self._roll.round,
            clients=clients,
            rejected_clients=tuple(sorted(self._rejected)),
            weight_sum=weight_sum,
            steps_sum=self._steps,
            vector_F=average(sums, weight_sum),
            sums=sums,
            each={name: _sorted(arrays, rows_k) for name, arrays in self._each.items()},
            weights_k=_sorted(self._weights, rows_k) if self._weights else None,
            bits_sum=self._bits,
        )

    def _close_block(self) -> None:
        block, self._block = self._block, BlockSum(-1)
        self._total.add_sums(block.total())
        self._clients += block.clients
        self._rejected += block.rejected
        self._steps += block.steps
        self._bits += block.bits
        for name, arrays in block.each.items():
            self._each.setdefault(name, []).extend(arrays)
        self._weights += block.weights

    def _nothing_usable(self) -> str:
        many = len(self._rejected)
        reason = f"the sums of all {many} clients are NaN or infinite" if many else "no client returned a result"
        return (
            f"no usable update in this round: {reason}; a lower client.optimizer.lr or server.lr may help, and the "
            f"run's client reports list each client's failure"
        )


def combine(
    updates: Sequence[GroupUpdate | BlockUpdate], order: Sequence[int], average: Average = mean
) -> CombinedUpdate:
    """Fold the sums of all groups or blocks, given in any order; see :class:`Fold`."""
    fold = Fold()
    for update in sorted(updates, key=place):
        fold.add(update)
    return fold.result(order, average)


def population_weight(weighting: str, sizes_N: np.ndarray) -> float:
    """Return the sum of the weights w_i of all clients that can be drawn, from their numbers of training examples."""
    sizes_N = np.asarray(sizes_N)
    return float(np.count_nonzero(sizes_N) if weighting == "uniform" else sizes_N.sum())


def _sorted(arrays: Sequence[np.ndarray], rows_k: np.ndarray) -> np.ndarray:
    """Return the clients' entries in ``arrays``, each moved to its row."""
    result = np.empty((len(rows_k), *arrays[0].shape[1:]), np.result_type(*arrays))
    start = 0
    for array in arrays:
        result[rows_k[start : start + len(array)]] = array
        start += len(array)
    return result
