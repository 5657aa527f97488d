"""Messages between driver, clients and server: frozen records of NumPy arrays, cheap to pickle, zero-copy in Ray.

Arrays have names. Only the method and its corrections (:mod:`fedsim.core.method`) know what a name means; code that
transports, sums, checks or saves arrays loops over them.

Shape suffixes: F entries of the exchanged vector, M entries of the local (personal) vector, A entries of all
parameters a client trains (F + M), C classes, k clients of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedsim.core.clipping import Clipping
from fedsim.core.predictions import Predictions

if TYPE_CHECKING:
    from fedsim.core.traffic import Download


@dataclass(frozen=True)
class GlobalState:
    """The server's broadcast, one object per round."""

    round: int
    """Rounds completed, so also the number of the round that starts from this state."""
    layers: tuple[int, ...]
    """Exchanged layers, ascending."""
    vector_F: np.ndarray
    """Prompts of the exchanged layers, then the head; float32, in exact runs float64 (``model.dtype``)."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further arrays that the device's half of the method reads, by name; each as long as the vector."""
    downloads: Mapping[str, Download] = field(default_factory=dict)
    """Sizes of what devices receive, by array; empty if nothing is compressed on the way down."""
    clipping: Clipping | None = None
    """How clients clip what they send; None without privacy."""


@dataclass(frozen=True)
class ClientState:
    """What a client keeps between rounds. Returned by the call that created it and owned by the driver."""

    client: int
    rounds: int = 0
    """Rounds in which the client trained."""
    steps: int = 0
    """Local optimizer steps over all rounds."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name: what corrections keep and what messages lost (a missing array means zeros), :data:`PERSONAL` and the moments."""
    last_round: int = -1
    """Round in which the client last trained, counted from 0; -1 before."""

    @property
    def has_tensors(self) -> bool:
        """Whether the state holds more than counts."""
        return bool(self.arrays)


PERSONAL, FIRST_MOMENT, SECOND_MOMENT = "personal", "first_moment", "second_moment"
"""Names in a client's state: prompts of the layers that are not exchanged, and the optimizer's moments if kept."""
DEVIATION, WALKED = "deviation", "walked"
"""Names of what a search without gradients begins with, the standard deviation of its first candidates, and of what it tallies
for each entry: the variance that chance alone would have given its result, in units of that deviation's square."""
VECTOR = "vector"
"""Name of the exchanged vector in sums and in arrays sent per client."""


@dataclass(frozen=True)
class WorkGroup:
    """A fixed cut of the cohort that one actor call executes: the unit of scheduling, retry and reduction."""

    round: int
    group: int
    """Number of the group among those of its round and step."""
    clients: tuple[int, ...]
    """Client ids, ascending."""
    part: int = 0
    """Number of this call's clients within the group; 0 unless every client has an actor of its own."""
    fuse: int = 1
    """Number of clients that share passes through the backbone."""
    with_cached: tuple[int, ...] = ()
    """Clients whose frozen-layer cache is passed in, kept from an earlier round."""
    keep_cached: tuple[int, ...] = ()
    """Clients whose frozen-layer cache is returned, to be passed in again when they next train."""
    step: int | None = None
    """Server step that takes the group in, if it is a later one than that of ``round``, whose state the group starts from."""

    @property
    def taken_in(self) -> int:
        """Server step that takes the group in."""
        return self.round if self.step is None else self.step


@dataclass(frozen=True)
class ClientFailure:
    """A client whose local training gave no usable result."""

    kind: Literal["error", "non_finite", "lost", "timeout"]
    """error: its own work raised; non_finite: its numbers cannot be used; lost: its worker was lost in every attempt;
    timeout: it missed a deadline. The last two occur only with ``client.on_failure: drop``."""
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class ClientReport:
    """Report on one client's local training; sent to the driver, holds no tensor."""

    client: int
    round: int
    num_examples: int
    num_steps: int = 0
    num_tokens: int = 0
    """Tokens of all mini-batches."""
    num_slots: int = 0
    """Tokens that attention computed for them, padding included; no other layer computes padding."""
    loss_first: float = float("nan")
    """Mean loss of the first local epoch."""
    loss_last: float = float("nan")
    """Mean loss of the last local epoch."""
    seconds: float = 0.0
    """Time of local training; for clients trained together, their share by number of tokens."""
    bytes_down: int = 0
    """Bytes that a real device would have received; see :mod:`fedsim.core.traffic`."""
    bytes_up: int = 0
    """Bytes that a real device would have sent."""
    memory_splits: int = 0
    """Number of passes split in two for lack of device memory; that of a whole work group is reported for its first client."""
    memory_tokens: int = 0
    """Most tokens of a pass of this work group that fit in memory after such a split; 0 if there was none."""
    change_norm: float | None = None
    """Norm of the client's change before clipping; None without privacy."""
    bit: float = 0.0
    """What the client told of its clipping: 1 if its change was within the norm, with its share of the noise if it adds one."""
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
    correction replaces it; the others are those that corrections declare."""
    each: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, [k, F]: arrays that the server reads per client, in the order of ``clients``."""
    weights_k: np.ndarray | None = None
    """float64 w_i per client; only if the server processes clients one by one."""
    bits_sum: float = 0.0
    """Sum of the bits that say whether a client's change was within the clipping norm."""


@dataclass(frozen=True)
class BlockUpdate:
    """Sums over the groups of one block that have arrived so far; arrays may be read-only and are never written to.

    The last group is kept separately, as ``open_sums``, while parts of it may still arrive.
    """

    round: int
    block: int
    """Number of the block in its round; see ``server.blocks.BLOCK_GROUPS``."""
    group: int
    """Group of the last update in the sums."""
    part: int
    """Part of the last update in the sums."""
    whole: bool
    """``group`` is complete: no more parts of it will arrive."""
    clients: tuple[int, ...]
    """Clients in the sums, in the order in which they were added."""
    rejected_clients: tuple[int, ...]
    """Clients left out because their update was not finite."""
    shape: tuple[int, ...]
    """Shape of the sums, known even if all updates were left out."""
    given: tuple[str, ...]
    """What the updates contain, in words."""
    steps_sum: int
    weight_sum: float
    """Of the complete groups."""
    sums: Mapping[str, np.ndarray]
    """Sums of the complete groups, by name; empty if there is none."""
    open_weight_sum: float
    """Of the last group, if it is incomplete."""
    open_sums: Mapping[str, np.ndarray]
    each: Mapping[str, tuple[np.ndarray, ...]]
    """Arrays that the server needs per client, as they arrived, in the order of ``clients``."""
    weights: tuple[np.ndarray, ...] = ()
    """Their weights, likewise."""
    bits_sum: float = 0.0
    """As in ``GroupUpdate``."""


@dataclass(frozen=True)
class CombinedUpdate:
    """A round's sums over its usable clients, in float64, and what the server derives from them."""

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
    """The combined client vectors: P_bar."""
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, as in ``GroupUpdate``."""
    each: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, [k, F] in the order of ``clients``, in the dtype in which they arrived."""
    weights_k: np.ndarray | None = None
    """float64 w_i per client, in the order of ``clients``."""
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Results of a robust rule that replace a sum's mean, by name."""
    sample_rate: float = 1.0
    """Share rho of the population that is drawn for a round."""
    population_weight: float = 0.0
    """Sum of the weights w_i of all clients that can be drawn."""
    bits_sum: float = 0.0
    """As in ``GroupUpdate``."""

    def mean_F(self, name: str) -> np.ndarray:
        """Return a sum divided by the sum of weights, or the result of the robust rule that replaces it."""
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
    """Free memory, or None if the system does not report it."""


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
    """One client's Hessian spectrum over all prompts, and the share of the prompt parameters it asks to keep.

    Shape suffixes: R probes, K Ritz values of a probe.
    """

    client: int
    num_examples: int
    share: float = float("nan")
    threshold: float | None = None
    """Eigenvalues above it are kept; None if the rule found no gap and all are kept."""
    values_RK: np.ndarray | None = None
    """float64 Ritz values, ascending."""
    weights_RK: np.ndarray | None = None
    """float64 weights of the Ritz values; they sum to 1 for each probe."""
    lipschitz: float | None = None
    """Estimate of the Lipschitz constant, if the rule needs it."""
    products: int = 0
    """Hessian-vector products computed."""
    seconds: float = 0.0
    failure: ClientFailure | None = None


@dataclass(frozen=True)
class Evaluation:
    """Counts from which every metric follows; evaluations add up."""

    confusion_CC: np.ndarray
    """int64; row = true class, column = predicted class. Of responses it counts tokens, all in row 1: in column 1 those that
    are the most likely ones where they stand, in column 0 the others."""
    loss_sum: float
    """Sum of the examples' losses; of responses, of their tokens'."""
    memory_splits: int = 0
    """Number of passes through the backbone split in two for lack of device memory."""
    predictions: Predictions | None = None
    """Of the examples, in their order; None unless asked for."""

    @property
    def num_examples(self) -> int:
        """Number of examples counted; of responses, of their tokens."""
        return int(self.confusion_CC.sum())

    def __add__(self, other: Evaluation) -> Evaluation:
        one, two = self.predictions, other.predictions
        return Evaluation(
            self.confusion_CC + other.confusion_CC,
            self.loss_sum + other.loss_sum,
            self.memory_splits + other.memory_splits,
            None if one is None or two is None else one + two,
        )
