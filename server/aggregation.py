"""Folding the groups' sums into the averages of a round, always in the same order.

Shape suffixes: F entries of the exchanged vector, k clients in the order in which the cohort was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.errors import ClientError
from fedsim.core.messages import BlockUpdate, GroupUpdate
from server.blocks import BLOCK_GROUPS, BlockSum, Roll, Sums, place
from server.config import ServerConfig


@dataclass(frozen=True)
class CombinedUpdate:
    """A round's sums and averages over its usable clients, in float64. Notation as in ``GroupUpdate``."""

    round: int
    clients: tuple[int, ...]
    """Clients in the averages, in the order in which they were drawn."""
    rejected_clients: tuple[int, ...]
    """Clients left out because their group's sums were not finite, ascending."""
    weight_sum: float
    """Sum of w_i."""
    vector_F: np.ndarray
    """Sum of w_i P_i over the sum of w_i: the average of the clients' vectors. With the preconditioner correction their
    steps are averaged in the common metric D = sum of w_i D_i instead: sum w_i (P_i + S_i) / sum w_i - sum w_i D_i S_i / D."""
    steps_sum: int
    """Sum of T_i."""
    control_delta_sum_F: np.ndarray | None = None
    """Sum of T_i (c_i+ - c_i), or of w_i (c_i+ - c_i); see ``GroupUpdate``."""
    control_F: np.ndarray | None = None
    """Sum of w_i c_i+ (or c_i, see ``GroupUpdate``) over the sum of w_i."""
    weights_k: np.ndarray | None = None
    """float64 w_i one by one, in the order of ``clients``."""
    control_kF: np.ndarray | None = None
    """c_i+ (or c_i) one by one, in the order of ``clients``, in the dtype in which they came."""
    vector_kF: np.ndarray | None = None
    """P_i one by one, likewise."""
    control_after_kF: np.ndarray | None = None
    """c_i+ one by one, where ``control_kF`` holds c_i."""


class Fold:
    """The running sums of a round: update after update in float64, each looked at once and then let go.

    Parts of a group are added from left to right, starting from zeros, then the groups of a block in the same way, then the
    blocks. A worker adds its clients in the same manner, so a group that came as one part and a group that came as one part
    for each client give the same bits; and so do groups that came one by one and a block that was summed elsewhere
    (:func:`server.blocks.add_to_block`).
    """

    def __init__(self) -> None:
        self._roll = Roll()
        self._block = BlockSum(-1)
        self._rejected: list[int] = []
        self._clients: list[int] = []
        self._steps = 0
        self._total = Sums()
        self._each: dict[str, list[np.ndarray]] = {}

    def add(self, update: GroupUpdate | BlockUpdate) -> None:
        """Add a group, a part, or the sums of a block's first groups; it has to come after those that were added before.

        Raises
        ------
        ValueError
            If it does not belong to the others: another round, another length, a client twice, a place before theirs.
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

    def result(self, order: Sequence[int]) -> CombinedUpdate:
        """Return the averages.

        Parameters
        ----------
        order
            The cohort in the order in which it was drawn. It may hold clients that are in no update (they failed).

        Raises
        ------
        ClientError
            If no update is usable.
        ValueError
            If a client is not of the cohort, or the cohort names one twice.
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
        control_sum_F = sums.get("control_sum_F")
        return CombinedUpdate(
            round=self._roll.round,
            clients=clients,
            rejected_clients=tuple(sorted(self._rejected)),
            weight_sum=weight_sum,
            vector_F=_average(sums, weight_sum),
            steps_sum=self._steps,
            control_delta_sum_F=sums.get("control_delta_sum_F"),
            control_F=None if control_sum_F is None else control_sum_F / weight_sum,
            **{name: _sorted(arrays, rows_k) for name, arrays in self._each.items()},
        )

    def _close_block(self) -> None:
        block, self._block = self._block, BlockSum(-1)
        self._total.add_sums(block.total())
        self._clients += block.clients
        self._rejected += block.rejected
        self._steps += block.steps
        for name, arrays in block.each.items():
            self._each.setdefault(name, []).extend(arrays)

    def _nothing_usable(self) -> str:
        many = len(self._rejected)
        reason = f"the sums of all {many} clients are NaN or infinite" if many else "no client gave a result"
        return (
            f"no usable update in this round: {reason}; a lower client.optimizer.lr or server.lr may help, and the "
            f"clients' own failures stand in the run's client reports"
        )


def combine(updates: Sequence[GroupUpdate | BlockUpdate], order: Sequence[int]) -> CombinedUpdate:
    """Fold the sums of all groups or blocks, which may come in any order; see :class:`Fold`."""
    fold = Fold()
    for update in sorted(updates, key=place):
        fold.add(update)
    return fold.result(order)


def population_weight(config: ServerConfig, sizes_N: np.ndarray) -> float:
    """Return the sum of the weights w_i of all clients that can be drawn, from their numbers of training examples."""
    sizes_N = np.asarray(sizes_N)
    return float(np.count_nonzero(sizes_N) if config.weighting == "uniform" else sizes_N.sum())


def _sorted(arrays: Sequence[np.ndarray], rows_k: np.ndarray) -> np.ndarray:
    """Return the clients' entries, which came as ``arrays``, each in its row."""
    result = np.empty((len(rows_k), *arrays[0].shape[1:]), np.result_type(*arrays))
    start = 0
    for array in arrays:
        result[rows_k[start : start + len(array)]] = array
        start += len(array)
    return result


def _average(sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
    average_F: np.ndarray = sums["vector_sum_F"] / weight_sum
    if "metric_sum_F" not in sums:
        return average_F
    metric_F, step_F = sums["metric_sum_F"], sums["metric_step_sum_F"]
    # No client took a step where the common metric is zero.
    average_F -= np.divide(step_F, metric_F, out=np.zeros_like(metric_F), where=metric_F > 0.0)
    return average_F
