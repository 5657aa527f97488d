"""Folding the groups' sums into the averages of a round, always in the same order.

Shape suffixes: F entries of the exchanged vector, k clients in the order in which the cohort was drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

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


def combine(updates: Sequence[GroupUpdate], order: Sequence[int]) -> CombinedUpdate:
    """Fold the sums of all groups.

    Parts of a group are added from left to right, starting from zeros, then the groups in the same way. A worker adds
    its clients in the same manner, so a group that came as one part and a group that came as one part for each client
    give the same bits.

    Parameters
    ----------
    updates
        In any order.
    order
        The cohort in the order in which it was drawn. It may hold clients that are in no update (they failed).

    Raises
    ------
    ClientError
        If no update is usable.
    ValueError
        If the updates do not belong together: another round, another length, a client twice or not of the cohort.
    """
    ordered = sorted((update for update in updates if update.clients), key=lambda update: (update.group, update.part))
    _check(ordered, order)
    usable = [update for update in ordered if is_finite(update)]
    rejected = sorted(client for update in ordered if not is_finite(update) for client in update.clients)
    weight_sum = float(_fold(usable, "weight_sum"))
    if not weight_sum > 0:
        reason = (
            f"the sums of all {len(rejected)} clients are NaN or infinite" if rejected else "no client gave a result"
        )
        raise ClientError(
            f"no usable update in this round: {reason}; a lower client.optimizer.lr or server.lr may help, and the "
            f"clients' own failures stand in the run's client reports"
        )
    control_sum_F = _fold_optional(usable, "control_sum_F")
    clients, positions = _drawn_order(usable, order)
    return CombinedUpdate(
        round=usable[0].round,
        clients=clients,
        rejected_clients=tuple(rejected),
        weight_sum=weight_sum,
        vector_F=_average(usable, weight_sum),
        steps_sum=sum(update.steps_sum for update in usable),
        control_delta_sum_F=_fold_optional(usable, "control_delta_sum_F"),
        control_F=None if control_sum_F is None else control_sum_F / weight_sum,
        weights_k=_each(usable, "weights_k", positions),
        control_kF=_each(usable, "control_kF", positions),
    )


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


_ARRAYS = ("control_delta_sum_F", "control_sum_F", "weights_k", "control_kF", "metric_sum_F", "metric_step_sum_F")


def _check(updates: Sequence[GroupUpdate], order: Sequence[int]) -> None:
    if not updates:
        return
    first = updates[0]
    drawn = {int(client) for client in order}
    if len(drawn) != len(order):
        raise ValueError("order names a client twice")
    seen: set[int] = set()
    for update in updates:
        name = f"update of group {update.group}, part {update.part},"
        if update.round != first.round:
            raise ValueError(f"{name} is of round {update.round}, others are of round {first.round}")
        if update.vector_sum_F.shape != first.vector_sum_F.shape:
            raise ValueError(f"{name} has shape {update.vector_sum_F.shape}, others {first.vector_sum_F.shape}")
        if differing := [field for field in _ARRAYS if _lacks(update, field) != _lacks(first, field)]:
            raise ValueError(f"{name} and others do not agree on whether {differing[0]} is given")
        _check_shapes(update, name)
        if seen & set(update.clients) or len(set(update.clients)) != len(update.clients):
            raise ValueError(f"{name} holds a client twice or one that another update holds as well")
        if strangers := set(update.clients) - drawn:
            raise ValueError(f"{name} holds client {min(strangers)}, which is not in the cohort")
        seen |= set(update.clients)


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
    for field in _ARRAYS:
        array = getattr(update, field)
        if array is not None and array.shape != expected[field]:
            raise ValueError(f"{name} has {field} of shape {array.shape}, expected {expected[field]}")


def _lacks(update: GroupUpdate, field: str) -> bool:
    return getattr(update, field) is None


def _average(updates: Sequence[GroupUpdate], weight_sum: float) -> np.ndarray:
    average_F: np.ndarray = _fold(updates, "vector_sum_F") / weight_sum
    metric_F, metric_step_F = (_fold_optional(updates, field) for field in ("metric_sum_F", "metric_step_sum_F"))
    if metric_F is None or metric_step_F is None:
        return average_F
    # No client took a step where the common metric is zero.
    step_F = np.divide(metric_step_F, metric_F, out=np.zeros_like(metric_F), where=metric_F > 0.0)
    return average_F - step_F


def _fold_optional(updates: Sequence[GroupUpdate], field: str) -> np.ndarray | None:
    return None if _lacks(updates[0], field) else _fold(updates, field)


def _fold(updates: Sequence[GroupUpdate], field: str) -> np.ndarray:
    """Return the sum of a field: parts within their group first, then groups."""
    groups = groupby(updates, key=lambda update: update.group)
    return _left_sum(_left_sum(getattr(update, field) for update in parts) for _, parts in groups)


def _left_sum(terms: Iterable[np.ndarray]) -> np.ndarray:
    # Not np.sum, which adds in pairs: its order depends on how many terms there are.
    total = np.zeros((), dtype=np.float64)
    for term in terms:
        total = total + np.asarray(term, dtype=np.float64)
    return total


def _drawn_order(updates: Sequence[GroupUpdate], order: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """Return the usable clients as drawn, and where each stands in the updates one after another."""
    place = {client: i for i, client in enumerate(client for update in updates for client in update.clients)}
    clients = tuple(int(client) for client in order if int(client) in place)
    return clients, [place[client] for client in clients]


def _each(updates: Sequence[GroupUpdate], field: str, positions: Sequence[int]) -> np.ndarray | None:
    if _lacks(updates[0], field):
        return None
    joined: np.ndarray = np.concatenate([getattr(update, field) for update in updates])
    return joined[np.asarray(positions)]
