"""What a work group sends to the server: sums over its clients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clients.training.local_job import TrainingResult
from fedsim.core.messages import ClientReport, ClientState, GroupUpdate, WorkGroup

BLOCK = 2**17
"""Entries that are added at a time: the float64 intermediates of a block stay in the processor's cache."""


class GroupSums:
    """The running float64 sums of a group, in client-id order.

    Every term is formed and added in float64, entry by entry, as in ``total + weight * vector.astype(float64)``; only
    that it is done in blocks of entries, without an intermediate of the vector's length.

    Parameters
    ----------
    group
        The work group.
    exchanged_F
        Positions of the exchanged entries in the vectors that clients train, ascending.
    uniform_weights
        Every client weighs one, not its number of examples.
    control_by_steps
        The server's control variate weighs clients by their local steps, not by w_i.
    control_before
        The server steps with the control variates from before the round.
    each_client
        The server needs weights and control variates one by one as well.
    each_vector
        The server needs those, the vectors, and the control variates from after the round one by one as well.
    """

    def __init__(
        self,
        group: WorkGroup,
        exchanged_F: np.ndarray,
        *,
        uniform_weights: bool,
        control_by_steps: bool,
        control_before: bool,
        each_client: bool,
        each_vector: bool = False,
    ) -> None:
        self._group = group
        self._exchanged_F = _as_slice(exchanged_F)
        self._blocks = [slice(start, start + BLOCK) for start in range(0, len(exchanged_F), BLOCK)]
        self._size = len(exchanged_F)
        self._uniform_weights = uniform_weights
        self._control_by_steps = control_by_steps
        self._control_before = control_before
        self._each_client = each_client or each_vector
        self._each_vector = each_vector
        self._clients: list[int] = []
        self._weights: list[float] = []
        self._controls: list[np.ndarray] = []
        self._controls_after: list[np.ndarray] = []
        self._vectors: list[np.ndarray] = []
        self._steps = 0
        self._sums: dict[str, np.ndarray] = {}
        self._scratch = np.empty((3, min(BLOCK, self._size)))

    def add(self, report: ClientReport, old: ClientState, new: ClientState, result: TrainingResult) -> None:
        """Add one client's result."""
        weight = 1.0 if self._uniform_weights else float(report.num_examples)
        self._clients.append(report.client)
        self._weights.append(weight)
        self._steps += report.num_steps
        local_F = result.vector_A[self._exchanged_F]
        if self._each_vector:
            self._vectors.append(local_F)
        if result.stepped_A is not None and result.gain_A is not None:
            self._add_in_metric(weight, local_F, result.stepped_A[self._exchanged_F], result.gain_A[self._exchanged_F])
        else:
            self._add_plain("vector_sum_F", weight, local_F)
        if new.control_F is not None:
            before_F = old.control_F if old.control_F is not None else np.zeros_like(new.control_F)
            share = report.num_steps if self._control_by_steps else weight
            self._add_difference(share, new.control_F, before_F)
            used_F = before_F if self._control_before else new.control_F
            self._add_plain("control_sum_F", weight, used_F)
            if self._each_client:
                self._controls.append(used_F)
            if self._each_vector and self._control_before:
                self._controls_after.append(new.control_F)

    def update(self) -> GroupUpdate | None:
        """Return the sums, or None if there was no usable client."""
        if not self._clients:
            return None
        return GroupUpdate(
            round=self._group.round,
            group=self._group.group,
            part=self._group.part,
            clients=tuple(self._clients),
            weight_sum=float(sum(self._weights)),
            vector_sum_F=self._sums["vector_sum_F"],
            steps_sum=self._steps,
            control_delta_sum_F=self._sums.get("control_delta_sum_F"),
            control_sum_F=self._sums.get("control_sum_F"),
            weights_k=np.array(self._weights) if self._each_client else None,
            control_kF=np.stack(self._controls) if self._controls else None,
            vector_kF=np.stack(self._vectors) if self._vectors else None,
            control_after_kF=np.stack(self._controls_after) if self._controls_after else None,
            metric_sum_F=self._sums.get("metric_sum_F"),
            metric_step_sum_F=self._sums.get("metric_step_sum_F"),
        )

    def _total(self, name: str) -> np.ndarray:
        if name not in self._sums:
            self._sums[name] = np.zeros(self._size)
        return self._sums[name]

    def _in_blocks(self, *arrays_F: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Yield every block with its entries of the arrays in float64, each in a scratch of its own."""
        for block in self._blocks:
            views = []
            for array_F, scratch in zip(arrays_F, self._scratch, strict=False):
                entries = array_F[block]
                views.append(scratch[: len(entries)])
                np.copyto(views[-1], entries)
            yield block, views

    def _add_plain(self, name: str, weight: float, array_F: np.ndarray) -> None:
        total_F = self._total(name)
        for block, (term,) in self._in_blocks(array_F):
            _add(total_F[block], weight, term)

    def _add_difference(self, weight: float, after_F: np.ndarray, before_F: np.ndarray) -> None:
        total_F = self._total("control_delta_sum_F")
        for block, (after, before) in self._in_blocks(after_F, before_F):
            _add(total_F[block], weight, np.subtract(after, before, out=after))

    def _add_in_metric(self, weight: float, local_F: np.ndarray, stepped_F: np.ndarray, gain_F: np.ndarray) -> None:
        """Add the terms w (P + S), w D and w D S; see ``GroupUpdate``."""
        vector_F, metric_F, step_F = map(self._total, ("vector_sum_F", "metric_sum_F", "metric_step_sum_F"))
        for block, (local, stepped, gain) in self._in_blocks(local_F, stepped_F, gain_F):
            _add(vector_F[block], weight, np.add(local, stepped, out=local))
            metric = _reciprocal(gain)
            _add(metric_F[block], weight, metric)
            _add(step_F[block], 1.0, np.multiply(metric, stepped, out=stepped))


def _add(total: np.ndarray, weight: float, term: np.ndarray) -> None:
    """Add ``weight * term`` to ``total``; ``term`` is overwritten."""
    if weight != 1.0:
        np.multiply(term, weight, out=term)
    np.add(total, term, out=total)


def _reciprocal(gain: np.ndarray) -> np.ndarray:
    """Return one over ``gain``, in its place; zero where there is none: the client took no step, and has no say."""
    if gain.min() > 0.0:
        return np.divide(1.0, gain, out=gain)
    # Many times slower.
    return np.divide(1.0, gain, out=np.zeros_like(gain), where=gain > 0.0)


def _as_slice(positions: np.ndarray) -> np.ndarray | slice:
    """Return ascending positions as a slice where they have no gap: it makes a view, not a copy."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions
