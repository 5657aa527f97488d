"""Sums held until the server step that takes them in, and what a step makes of changes that began from earlier states.

FedBuff (Nguyen et al. 2022, arXiv 2106.06639): a change counts by how many server steps were taken since it began, and the
sum is divided by the weight of all clients of the buffer, not by that of what counted. A synchronous round is the case in
which every change begins from the current state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedsim.core.errors import ClientError
from fedsim.core.messages import VECTOR, BlockUpdate, CombinedUpdate, GroupUpdate
from server.aggregation import Average, Fold, mean


def staleness_weight(staleness: int, exponent: float) -> float:
    """Return (1 + s) to the power of minus the exponent, as in FedAsync and FedBuff; 1 for a change that is not stale."""
    return float((1.0 + staleness) ** -exponent)


def rebased(
    sum_F: np.ndarray, weight_sum: float, began_F: np.ndarray, now_F: np.ndarray, staleness: float
) -> np.ndarray:
    """Return a sum of clients' vectors as if their changes, scaled, had been made to another vector, in float64.

    Parameters
    ----------
    sum_F, weight_sum
        Sum of w_i P_i, and of w_i.
    began_F
        Where the clients began.
    now_F
        Where their changes are put.
    staleness
        Factor on the changes.
    """
    change_F = sum_F - weight_sum * began_F.astype(np.float64)
    result_F: np.ndarray = staleness * change_F + weight_sum * now_F
    return result_F


class Held:
    """Running sums by the step that takes them in and the version of the state from which they began."""

    def __init__(self) -> None:
        self._folds: dict[int, dict[int, Fold]] = {}

    def add(self, step: int, update: GroupUpdate | BlockUpdate) -> None:
        """Add an update; those of a step and version must come in the order of addition."""
        folds = self._folds.setdefault(step, {})
        if update.round not in folds:
            folds[update.round] = Fold()
        folds[update.round].add(update)

    def take(self, step: int) -> dict[int, Fold]:
        """Remove the sums of a step and return them, by version."""
        return dict(sorted(self._folds.pop(step, {}).items()))


def combined(
    folds: Mapping[int, Fold],
    step: int,
    order: Sequence[int],
    vector_F: np.ndarray,
    kept: Mapping[int, np.ndarray],
    exponent: float,
    average: Average = mean,
) -> CombinedUpdate:
    """Return the update of a step from sums that began from several versions of the state.

    Parameters
    ----------
    folds
        The sums, by version, ascending.
    order
        All clients of the step, in the order drawn.
    vector_F
        The state that the step starts from, its version ``step``; float64.
    kept
        The states of earlier versions.
    exponent
        See :func:`staleness_weight`.
    average
        Combines the clients' vectors.

    Raises
    ------
    ClientError
        If no update is usable.
    ValueError
        If an update began from a version that is not kept.
    """
    if not folds:
        return Fold().result(order, average)
    if strangers := [version for version in folds if version != step and version not in kept]:
        raise ValueError(f"an update of step {step} began from version {strangers[0]}, which the server does not hold")
    results: list[CombinedUpdate] = []
    rejected: list[int] = []
    failure: ClientError | None = None
    for version, fold in folds.items():
        try:
            result = fold.result(order, average)
        except ClientError as error:
            failure, rejected = error, rejected + fold.rejected
            continue
        rejected += result.rejected_clients
        if version != step:
            factor = staleness_weight(step - version, exponent)
            sum_F = rebased(result.sums[VECTOR], result.weight_sum, kept[version], vector_F, factor)
            result = replace(result, sums={**result.sums, VECTOR: sum_F})
        results.append(result)
    if not results:
        raise failure or ClientError("no usable update in this step")
    if len(folds) == 1 and step in folds:
        return results[0]
    return _together(results, step, order, rejected, average)


def _together(
    results: Sequence[CombinedUpdate], step: int, order: Sequence[int], rejected: Sequence[int], average: Average
) -> CombinedUpdate:
    """Add up the sums of several versions, the oldest first."""
    weight_sum = sum(result.weight_sum for result in results)
    sums = {VECTOR: results[0].sums[VECTOR]}
    for result in results[1:]:
        sums = {VECTOR: sums[VECTOR] + result.sums[VECTOR]}
    usable = {client for result in results for client in result.clients}
    if sum(len(result.clients) for result in results) != len(usable):
        raise ValueError(f"step {step} takes in a client twice")
    return CombinedUpdate(
        round=step,
        clients=tuple(int(client) for client in order if int(client) in usable),
        rejected_clients=tuple(sorted(rejected)),
        weight_sum=weight_sum,
        steps_sum=sum(result.steps_sum for result in results),
        vector_F=average(sums, weight_sum),
        sums=sums,
    )
