"""What passes between driver, clients and server. Plain frozen records of NumPy arrays: cheap to pickle, zero-copy in Ray.

Arrays have names. What a name means is known to the method and its corrections alone (:mod:`fedsim.core.method`); all that
carries, adds up, checks or saves arrays loops over them.

Shape suffixes: F entries of the exchanged vector, M entries of the local (personal) vector, A entries of all
parameters a client trains (F + M), C classes, k clients of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the devices' half of the method reads beside it, by name; each as long as the vector."""


@dataclass(frozen=True)
class ClientState:
    """What a client keeps between rounds. Returned by the call that made it and owned by the driver."""

    client: int
    rounds: int = 0
    """Rounds in which the client trained."""
    steps: int = 0
    """Local optimizer steps over all rounds."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name: what corrections keep (one that is missing stands for zeros), and :data:`PERSONAL` and the moments."""

    @property
    def has_tensors(self) -> bool:
        """Whether more is kept than counts."""
        return bool(self.arrays)


PERSONAL, FIRST_MOMENT, SECOND_MOMENT = "personal", "first_moment", "second_moment"
"""Names in a client's state: prompts of the layers that are not exchanged, and the optimizer's moments where they are kept."""
VECTOR = "vector"
"""Name of the exchanged vector among sums and among what is sent one by one."""


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
    """Sums over a group's usable clients, in client-id order, in float64."""

    round: int
    group: int
    part: int
    clients: tuple[int, ...]
    """Clients in the sums, ascending."""
    weight_sum: float
    """Sum of the clients' weights w_i."""
    steps_sum: int
    """Sum of their local steps T_i."""
    sums: Mapping[str, np.ndarray]
    """By name, float64 [F]: :data:`VECTOR` is the sum of w_i P_i, P_i a client's exchanged vector after training, if no
    correction says otherwise; the others are those that corrections declare."""
    each: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, [k, F]: what the server looks at client by client, in the order of ``clients``."""
    weights_k: np.ndarray | None = None
    """float64 w_i one by one; only where the server looks at clients one by one."""


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
    """What the updates have, in words."""
    steps_sum: int
    weight_sum: float
    """Of the groups that are whole."""
    sums: Mapping[str, np.ndarray]
    """Sums of the groups that are whole, by name; empty where there is none."""
    open_weight_sum: float
    """Of the last group, where it is not whole."""
    open_sums: Mapping[str, np.ndarray]
    each: Mapping[str, tuple[np.ndarray, ...]]
    """What the server needs of clients one by one, as it came, in the order of ``clients``."""
    weights: tuple[np.ndarray, ...] = ()
    """Their weights, likewise."""


@dataclass(frozen=True)
class CombinedUpdate:
    """A round's sums over its usable clients, in float64, and what the server makes of them."""

    round: int
    clients: tuple[int, ...]
    """Clients in the sums, in the order in which they were drawn."""
    rejected_clients: tuple[int, ...]
    """Clients left out because their group's sums were not finite, ascending."""
    weight_sum: float
    """Sum of w_i."""
    steps_sum: int
    """Sum of T_i."""
    vector_F: np.ndarray
    """The clients' vectors taken together: P_bar."""
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, as in ``GroupUpdate``."""
    each: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, [k, F] in the order of ``clients``, in the dtype in which they came."""
    weights_k: np.ndarray | None = None
    """float64 w_i one by one, in the order of ``clients``."""
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Where a robust rule has put something in the place of a sum's mean."""
    sample_rate: float = 1.0
    """Share rho of the population that is drawn for a round."""
    population_weight: float = 0.0
    """Sum of the weights w_i of all clients that can be drawn."""

    def mean_F(self, name: str) -> np.ndarray:
        """Return a sum over the sum of the weights, or what a robust rule has made of it."""
        mean_F: np.ndarray = self.means[name] if name in self.means else self.sums[name] / self.weight_sum
        return mean_F


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
