"""Folding the groups' sums into the averages of a round, always in the same order.

Shape suffixes: F entries of the exchanged vector, k clients in the order in which the cohort was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.errors import ClientError
from fedsim.core.messages import GroupUpdate
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


class Fold:
    """The running sums of a round: group after group in float64, each looked at once and then let go.

    Parts of a group are added from left to right, starting from zeros, then the groups in the same way. A worker adds
    its clients in the same manner, so a group that came as one part and a group that came as one part for each client
    give the same bits.
    """

    def __init__(self) -> None:
        self._first: GroupUpdate | None = None
        self._last = (-1, -1)
        self._seen: set[int] = set()
        self._rejected: list[int] = []
        self._clients: list[int] = []
        self._steps = 0
        self._total = _Sums()
        self._group = _Sums()
        self._weights: list[np.ndarray] = []
        self._controls: list[np.ndarray] = []

    def add(self, update: GroupUpdate) -> None:
        """Add a group or part; it has to come after those that were added before.

        Raises
        ------
        ValueError
            If it does not belong to the others: another round, another length, a client twice, a place before theirs.
        """
        if not update.clients:
            return
        self._check(update)
        if update.group != self._last[0]:
            self._close_group()
        self._last = (update.group, update.part)
        if not is_finite(update):
            self._rejected += update.clients
            return
        self._group.add(
            update.weight_sum, {name: array for name in _SUMS if (array := getattr(update, name)) is not None}
        )
        self._clients += update.clients
        self._steps += update.steps_sum
        if update.weights_k is not None:
            self._weights.append(update.weights_k)
        if update.control_kF is not None:
            self._controls.append(update.control_kF)

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
        if strangers := self._seen - drawn:
            raise ValueError(f"an update holds client {min(strangers)}, which is not in the cohort")
        self._close_group()
        weight_sum, sums = self._total.weight, self._total.arrays
        if self._first is None or not weight_sum > 0:
            raise ClientError(self._nothing_usable())
        place = {client: i for i, client in enumerate(self._clients)}
        clients = tuple(int(client) for client in order if int(client) in place)
        positions = np.array([place[client] for client in clients])
        control_sum_F = sums.get("control_sum_F")
        return CombinedUpdate(
            round=self._first.round,
            clients=clients,
            rejected_clients=tuple(sorted(self._rejected)),
            weight_sum=weight_sum,
            vector_F=_average(sums, weight_sum),
            steps_sum=self._steps,
            control_delta_sum_F=sums.get("control_delta_sum_F"),
            control_F=None if control_sum_F is None else control_sum_F / weight_sum,
            weights_k=np.concatenate(self._weights)[positions] if self._weights else None,
            control_kF=np.concatenate(self._controls)[positions] if self._controls else None,
        )

    def _close_group(self) -> None:
        if self._group.arrays:
            self._total.add(self._group.weight, self._group.arrays)
        self._group = _Sums()

    def _nothing_usable(self) -> str:
        many = len(self._rejected)
        reason = f"the sums of all {many} clients are NaN or infinite" if many else "no client gave a result"
        return (
            f"no usable update in this round: {reason}; a lower client.optimizer.lr or server.lr may help, and the "
            f"clients' own failures stand in the run's client reports"
        )

    def _check(self, update: GroupUpdate) -> None:
        first = self._first = self._first or update
        name = f"update of group {update.group}, part {update.part},"
        if update.round != first.round:
            raise ValueError(f"{name} is of round {update.round}, others are of round {first.round}")
        if update.vector_sum_F.shape != first.vector_sum_F.shape:
            raise ValueError(f"{name} has shape {update.vector_sum_F.shape}, others {first.vector_sum_F.shape}")
        if differing := [field for field in _OPTIONAL if _lacks(update, field) != _lacks(first, field)]:
            raise ValueError(f"{name} and others do not agree on whether {differing[0]} is given")
        _check_shapes(update, name)
        if self._seen & set(update.clients) or len(set(update.clients)) != len(update.clients):
            raise ValueError(f"{name} holds a client twice or one that another update holds as well")
        if (update.group, update.part) < self._last:
            raise ValueError(f"{name} came after group {self._last[0]}, part {self._last[1]}")
        self._seen |= set(update.clients)


def combine(updates: Sequence[GroupUpdate], order: Sequence[int]) -> CombinedUpdate:
    """Fold the sums of all groups, which may come in any order; see :class:`Fold`."""
    fold = Fold()
    for update in in_order(updates):
        fold.add(update)
    return fold.result(order)


def in_order(updates: Sequence[GroupUpdate]) -> list[GroupUpdate]:
    """Return updates in the order in which they are folded: by group, then part."""
    return sorted(updates, key=lambda update: (update.group, update.part))


class _Sums:
    """Sums from left to right. Not np.sum, which adds in pairs: its order depends on how many terms there are."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.arrays: dict[str, np.ndarray] = {}
        self._owned = False

    def add(self, weight: float, arrays: Mapping[str, np.ndarray]) -> None:
        self.weight += weight
        if not self.arrays:
            # What was added to zeros already is not copied: most groups are a single part.
            self.arrays = dict(arrays)
            return
        for name, array in arrays.items():
            out = self.arrays[name] if self._owned else None
            self.arrays[name] = np.add(self.arrays[name], array, out=out)
        self._owned = True


def population_weight(config: ServerConfig, sizes_N: np.ndarray) -> float:
    """Return the sum of the weights w_i of all clients that can be drawn, from their numbers of training examples."""
    sizes_N = np.asarray(sizes_N)
    return float(np.count_nonzero(sizes_N) if config.weighting == "uniform" else sizes_N.sum())


def is_finite(update: GroupUpdate) -> bool:
    """Return whether all numbers of an update are finite."""
    arrays = (
        update.vector_sum_F,
        update.control_delta_sum_F,
        update.control_sum_F,
        update.weights_k,
        update.control_kF,
        update.metric_sum_F,
        update.metric_step_sum_F,
    )
    return bool(np.isfinite(update.weight_sum)) and all(np.isfinite(a).all() for a in arrays if a is not None)


_SUMS = ("vector_sum_F", "control_delta_sum_F", "control_sum_F", "metric_sum_F", "metric_step_sum_F")
_OPTIONAL = (*_SUMS[1:], "weights_k", "control_kF")


def _check_shapes(update: GroupUpdate, name: str) -> None:
    shape = update.vector_sum_F.shape
    expected = {
        "control_delta_sum_F": shape,
        "control_sum_F": shape,
        "weights_k": (len(update.clients),),
        "control_kF": (len(update.clients), *shape),
        "metric_sum_F": shape,
        "metric_step_sum_F": shape,
    }
    for field in _OPTIONAL:
        array = getattr(update, field)
        if array is not None and array.shape != expected[field]:
            raise ValueError(f"{name} has {field} of shape {array.shape}, expected {expected[field]}")


def _lacks(update: GroupUpdate, field: str) -> bool:
    return getattr(update, field) is None


def _average(sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
    average_F: np.ndarray = sums["vector_sum_F"] / weight_sum
    if "metric_sum_F" not in sums:
        return average_F
    metric_F, step_F = sums["metric_sum_F"], sums["metric_step_sum_F"]
    # No client took a step where the common metric is zero.
    average_F -= np.divide(step_F, metric_F, out=np.zeros_like(metric_F), where=metric_F > 0.0)
    return average_F
