"""What a work group sends to the server: sums over its clients."""

from __future__ import annotations

import numpy as np

from clients.training import TrainingResult
from fedsim.core.messages import ClientReport, ClientState, GroupUpdate, WorkGroup


class GroupSums:
    """The running float64 sums of a group, in client-id order.

    Parameters
    ----------
    group
        The work group.
    exchanged_F
        Positions of the exchanged entries in the vectors that clients train.
    uniform_weights
        Every client weighs one, not its number of examples.
    control_by_steps
        The server's control variate weighs clients by their local steps, not by w_i.
    control_before
        The server steps with the control variates from before the round.
    each_client
        The server needs weights and control variates one by one as well.
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
    ) -> None:
        self._group = group
        self._exchanged_F = exchanged_F
        self._uniform_weights = uniform_weights
        self._control_by_steps = control_by_steps
        self._control_before = control_before
        self._each_client = each_client
        self._clients: list[int] = []
        self._weights: list[float] = []
        self._controls: list[np.ndarray] = []
        self._steps = 0
        self._vector_F: np.ndarray | None = None
        self._control_delta_F: np.ndarray | None = None
        self._control_F: np.ndarray | None = None
        self._metric_F: np.ndarray | None = None
        self._metric_step_F: np.ndarray | None = None

    def add(self, report: ClientReport, old: ClientState, new: ClientState, result: TrainingResult) -> None:
        """Add one client's result."""
        weight = 1.0 if self._uniform_weights else float(report.num_examples)
        self._clients.append(report.client)
        self._weights.append(weight)
        self._steps += report.num_steps
        local_F = self._exchanged(result.vector_A)
        if result.stepped_A is not None and result.gain_A is not None:
            stepped_F, gain_F = self._exchanged(result.stepped_A), self._exchanged(result.gain_A)
            # A schedule at zero has no gain: the client took no step, and has no say.
            metric_F = np.divide(1.0, gain_F, out=np.zeros_like(gain_F), where=gain_F > 0.0)
            local_F = local_F + stepped_F
            self._metric_F = _plus(self._metric_F, weight * metric_F)
            self._metric_step_F = _plus(self._metric_step_F, weight * metric_F * stepped_F)
        self._vector_F = _plus(self._vector_F, weight * local_F)
        if new.control_F is not None:
            after_F = new.control_F.astype(np.float64)
            before_F = old.control_F.astype(np.float64) if old.control_F is not None else np.zeros_like(after_F)
            share = report.num_steps if self._control_by_steps else weight
            self._control_delta_F = _plus(self._control_delta_F, share * (after_F - before_F))
            used_F = before_F if self._control_before else after_F
            self._control_F = _plus(self._control_F, weight * used_F)
            self._controls.append(used_F.astype(new.control_F.dtype))

    def _exchanged(self, vector_A: np.ndarray) -> np.ndarray:
        return vector_A[self._exchanged_F].astype(np.float64)

    def update(self) -> GroupUpdate | None:
        """Return the sums, or None if there was no usable client."""
        if self._vector_F is None:
            return None
        return GroupUpdate(
            round=self._group.round,
            group=self._group.group,
            part=self._group.part,
            clients=tuple(self._clients),
            weight_sum=float(sum(self._weights)),
            vector_sum_F=self._vector_F,
            steps_sum=self._steps,
            control_delta_sum_F=self._control_delta_F,
            control_sum_F=self._control_F,
            weights_k=np.array(self._weights) if self._each_client else None,
            control_kF=np.stack(self._controls) if self._each_client and self._controls else None,
            metric_sum_F=self._metric_F,
            metric_step_sum_F=self._metric_step_F,
        )


def _plus(total: np.ndarray | None, term: np.ndarray) -> np.ndarray:
    return np.zeros_like(term) + term if total is None else total + term
