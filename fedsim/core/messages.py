"""What passes between driver, clients and server. Plain frozen records of NumPy arrays: cheap to pickle, zero-copy in Ray.

Shape suffixes: F entries of the exchanged vector, M entries of the local (personal) vector, A entries of all
parameters a client trains (F + M), C classes, k clients of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class GlobalState:
    """What the server broadcasts, one object a round."""

    round: int
    """Rounds completed, so also the number of the round that starts from this state."""
    layers: tuple[int, ...]
    """Exchanged layers, ascending."""
    vector_F: np.ndarray
    """Prompts of the exchanged layers, then the head; float32, in exact runs float64 (``model.dtype``)."""
    control_F: np.ndarray | None = None
    """The server's control variate c, or None if the method has none."""


@dataclass(frozen=True)
class ClientState:
    """What a client keeps between its visits. Returned by the call that made it and owned by the driver."""

    client: int
    rounds: int = 0
    """Rounds in which the client trained."""
    steps: int = 0
    """Local optimizer steps over all visits."""
    personal_M: np.ndarray | None = None
    """float32; prompts of the layers that are not exchanged."""
    control_F: np.ndarray | None = None
    """float32; the control variate c_i; None stands for zeros."""
    first_moment_A: np.ndarray | None = None
    """float32; Adam's first moment, where the client keeps it."""
    second_moment_A: np.ndarray | None = None
    """float32; Adam's second moment, where the client keeps it."""

    @property
    def has_tensors(self) -> bool:
        """Whether more is kept than counts."""
        tensors = (self.personal_M, self.control_F, self.first_moment_A, self.second_moment_A)
        return any(tensor is not None for tensor in tensors)


@dataclass(frozen=True)
class WorkGroup:
    """A fixed cut of the cohort that one actor call executes: the unit of scheduling, retry and reduction."""

    round: int
    group: int
    """Number of the group in its round."""
    clients: tuple[int, ...]
    """Client ids, ascending."""
    part: int = 0
    """Number of this call's clients within the group; 0 unless every client has an actor of its own."""
    fuse: int = 1
    """Clients that share passes through the backbone."""
    with_cached: tuple[int, ...] = ()
    """Clients whose trunk is handed in, kept from an earlier visit."""
    keep_cached: tuple[int, ...] = ()
    """Clients whose trunk is to be returned, to be handed in again at their next visit."""


@dataclass(frozen=True)
class ClientFailure:
    """A client whose visit gave no usable result."""

    kind: Literal["error", "non_finite", "lost", "timeout"]
    """error: its own work raised; non_finite: its numbers cannot be used; lost: its worker was lost each time that it was
    tried; timeout: it was not done by a deadline. The last two occur with ``client.on_failure: drop`` alone."""
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class ClientReport:
    """What is known of one client after its visit; travels to the driver, holds no tensor."""

    client: int
    round: int
    num_examples: int
    num_steps: int = 0
    num_tokens: int = 0
    """Tokens of all mini-batches."""
    num_slots: int = 0
    """Tokens that attention computed for them, padding included; all other layers compute none."""
    loss_first: float = float("nan")
    """Mean loss of the first local epoch."""
    loss_last: float = float("nan")
    """Mean loss of the last local epoch."""
    seconds: float = 0.0
    """Time that the visit took; of clients that trained together, the part that goes by their tokens."""
    bytes_down: int = 0
    """Bytes that a real device would have received; see :mod:`fedsim.core.traffic`."""
    bytes_up: int = 0
    """Bytes that a real device would have sent."""
    memory_splits: int = 0
    """Times that the memory of the device made a pass be cut in two; of a work group, stands at the first client."""
    memory_tokens: int = 0
    """Most tokens of a pass of this work group that memory then held; 0 where it held all."""
    node: str = ""
    pid: int = 0
    failure: ClientFailure | None = None


@dataclass(frozen=True)
class GroupUpdate:
    """Sums over a group's usable clients, in client-id order, in float64.

    With w_i the client's weight, P_i its exchanged vector after training, T_i its local steps and c_i, c_i+ its
    control variate before and after.
    """

    round: int
    group: int
    part: int
    clients: tuple[int, ...]
    """Clients in the sums, ascending."""
    weight_sum: float
    """Sum of w_i."""
    vector_sum_F: np.ndarray
    """Sum of w_i P_i; with the preconditioner correction, sum of w_i (P_i + S_i), S_i what the client's steps took away."""
    steps_sum: int
    """Sum of T_i."""
    control_delta_sum_F: np.ndarray | None = None
    """Sum of w_i (c_i+ - c_i), or of T_i (c_i+ - c_i) where the server's variate is weighted by local steps."""
    control_sum_F: np.ndarray | None = None
    """Sum of w_i c_i+, or of w_i c_i where the server steps with the variates from before the round."""
    weights_k: np.ndarray | None = None
    """float64 w_i one by one; only where the server looks at clients one by one."""
    control_kF: np.ndarray | None = None
    """The terms of ``control_sum_F`` without w_i, one by one; only where the server looks at clients one by one."""
    vector_kF: np.ndarray | None = None
    """P_i one by one; only for rules of ``server.aggregation`` other than the mean."""
    control_after_kF: np.ndarray | None = None
    """c_i+ one by one, where ``control_kF`` holds c_i; only for rules other than the mean."""
    metric_sum_F: np.ndarray | None = None
    """Preconditioner correction: sum of w_i D_i, D_i the reciprocal of the client's accumulated gain."""
    metric_step_sum_F: np.ndarray | None = None
    """Preconditioner correction: sum of w_i D_i S_i."""


@dataclass(frozen=True)
class BlockUpdate:
    """Sums over the groups of one block that have come so far; arrays may be read-only and are never written to.

    The last group is kept apart, as ``open_sums``, as long as parts of it may still come.
    """

    round: int
    block: int
    """Number of the block in its round; see ``server.blocks.BLOCK_GROUPS``."""
    group: int
    """Group of the last update in the sums."""
    part: int
    """Part of the last update in the sums."""
    whole: bool
    """No more parts of ``group`` come."""
    clients: tuple[int, ...]
    """Clients in the sums, in the order in which they were added."""
    rejected_clients: tuple[int, ...]
    """Clients left out because their update was not finite."""
    shape: tuple[int, ...]
    """Shape of the sums, known even where all updates were left out."""
    given: tuple[str, ...]
    """Optional fields that the updates have."""
    steps_sum: int
    weight_sum: float
    """Of the groups that are whole."""
    sums: dict[str, np.ndarray]
    """Sums of the groups that are whole, by the name of the field of ``GroupUpdate``; empty where there is none."""
    open_weight_sum: float
    """Of the last group, where it is not whole."""
    open_sums: dict[str, np.ndarray]
    each: dict[str, tuple[np.ndarray, ...]]
    """What the server needs of clients one by one, as it came, in the order of ``clients``."""


@dataclass(frozen=True)
class FuseTrial:
    """A step of some clients, tried one after another and side by side."""

    clients: int
    seconds_alone: float
    """One after another."""
    seconds_together: float
    bytes_per_client: int
    """Memory of a client's vectors in a shared step."""
    bytes_free: int | None
    """Memory that was free, or None where the system does not tell."""


@dataclass(frozen=True)
class ScoreReport:
    """One client's layer scores."""

    client: int
    num_examples: int
    scores_L: np.ndarray
    """float64, one score for each layer of the backbone."""
    failure: ClientFailure | None = None


@dataclass(frozen=True)
class SpectrumReport:
    """One client's spectrum of the Hessian in all prompts, and the share of them that it asks to keep.

    Shape suffixes: R probes, K Ritz values of a probe.
    """

    client: int
    num_examples: int
    share: float = float("nan")
    threshold: float | None = None
    """Eigenvalues above it are kept; None where the rule found no gap, so that everything is."""
    values_RK: np.ndarray | None = None
    """float64 Ritz values, ascending."""
    weights_RK: np.ndarray | None = None
    """float64 weights of the Ritz values, sum 1 a probe."""
    lipschitz: float | None = None
    """Estimate of the Lipschitz constant, where the rule needs it."""
    products: int = 0
    """Hessian-vector products computed."""
    seconds: float = 0.0
    failure: ClientFailure | None = None


@dataclass(frozen=True)
class Evaluation:
    """Counts from which every metric follows; evaluations add up."""

    confusion_CC: np.ndarray
    """int64; row = true class, column = predicted class."""
    loss_sum: float
    """Sum of the examples' losses."""
    memory_splits: int = 0
    """Times that the memory of the device made a pass through the backbone be cut in two."""

    @property
    def num_examples(self) -> int:
        """Number of examples counted."""
        return int(self.confusion_CC.sum())

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(
            self.confusion_CC + other.confusion_CC,
            self.loss_sum + other.loss_sum,
            self.memory_splits + other.memory_splits,
        )
