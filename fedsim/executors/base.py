"""The executor interface: the round loop on one side, a local process or Ray on the other."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from fedsim.core.generated import Generated
from fedsim.core.imports import large_imports
from fedsim.core.low_rank import LowRank
from fedsim.core.memory import peak_memory_bytes
from fedsim.core.messages import (
    ClientFailure,
    ClientReport,
    Evaluation,
    FuseTrial,
    ScoreReport,
    SpectrumReport,
    WorkGroup,
)
from fedsim.executors.frozen_cache import FrozenCache
from fedsim.executors.frozen_cache import Key as CacheKey
from server.privacy.mechanism import Mechanism
from server.sampling import cut

if TYPE_CHECKING:
    import numpy as np

    from clients.spec import WorkerInfo, WorkerSpec
    from fedsim.core.method import Method
    from fedsim.core.robust import RobustRule
    from fedsim.records.round_record import RoundRecord
    from server.broadcasting import Broadcasting
    from server.core import StepReport

Handle = Any
"""A value of this process (local) or a reference into the object store (Ray). The round loop only passes it on."""

NONE_EARLIER: Mapping[int, Handle] = MappingProxyType({})
"""No states of earlier rounds, as in synchronous rounds."""
Ranges = Sequence[tuple[int, int]]
"""Ranges of validation examples, each from a first to before a last."""


class StateLost(Exception):  # noqa: N818 - the run can go on from an earlier state
    """Objects that the run needs were lost with a worker's node or the server; the message names what needed them.

    After :meth:`Executor.recover` the run continues from a state that the caller still holds.
    """


@dataclass(frozen=True)
class TrainedGroup:
    """Results of one work group."""

    group: WorkGroup
    reports: tuple[ClientReport, ...]
    states: dict[int, Handle]
    """New state of each client of the group; empty if clients keep nothing but the counts in their reports."""


@dataclass(frozen=True)
class EvaluatedShard:
    """Result of one range of validation examples, evaluated while a round trains."""

    index: int
    evaluation: Evaluation


class ServerHandle(Protocol):
    """The server as the round loop sees it, wherever it runs."""

    def start(
        self,
        method: Method,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
        rule: RobustRule | None = None,
        turns: tuple[np.ndarray, ...] = (),
        low_rank: tuple[LowRank, ...] = (),
        broadcasting: Broadcasting | None = None,
        mechanism: Mechanism | None = None,
        staleness_exponent: float | None = None,
    ) -> None:
        """Create the server, or recreate it with other layers; see :class:`server.core.Server`."""

    def global_state(self, *version: int) -> Handle:
        """Store the state that the next round starts from, or an earlier version, and return its handle; once for each."""

    def apply(self, round: int, order: tuple[int, ...], **named: Any) -> StepReport:
        """Take a server step from the sums of the trained groups; see :meth:`server.core.Server.apply`."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the server's whole state, for a checkpoint."""
        ...

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Load a checkpoint's state into the server."""


class InOrder:
    """Restores the order of numbered items (0, 1, ...) that arrive in any order."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, Any] = {}

    def next(self, number: int, thing: Any) -> Iterator[Any]:
        """Add an item; yield those that are next in order."""
        self._early[number] = thing
        while self._next in self._early:
            yield self._early.pop(self._next)
            self._next += 1


class Executor(ABC):
    """Runs work groups. Results depend neither on the executor nor on its number of workers."""

    per_client = False
    """Whether every client has its own worker, so that groups are sent out client by client."""

    def __init__(self, check_interrupt: Callable[[], None]) -> None:
        self._check_interrupt = check_interrupt
        self.fuse = 1
        """Number of clients that share a pass through the backbone."""
        self.caches = FrozenCache.none()
        """Frozen-layer states kept between rounds."""

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Hold interrupts back in this block; they are handled when it ends."""
        check, self._check_interrupt = self._check_interrupt, lambda: None
        try:
            yield
        finally:
            self._check_interrupt = check

    def groups(
        self, round: int, order: Sequence[int], group_size: int, work_N: np.ndarray, step: int | None = None
    ) -> list[WorkGroup]:
        """Split a cohort into work groups; where every client has its own worker, each group is sent in parts.

        ``work_N`` is the work of each client of the population; see :func:`server.sampling.cut`. ``step`` is the server step
        that takes the groups in, if it is not that of ``round``.
        """
        groups: list[WorkGroup] = []
        for number, clients in enumerate(cut(order, group_size, work_N)):
            if self.per_client:
                groups += [WorkGroup(round, number, (client,), part, step=step) for part, client in enumerate(clients)]
            else:
                groups.append(WorkGroup(round, number, clients, fuse=self.fuse, step=step))
        return groups

    def keep_cached_within(self, max_bytes: int, nbytes: Callable[[CacheKey], int]) -> None:
        """Keep frozen-layer states between rounds; ``nbytes`` is the size of each entry, 0 if it has none."""
        shared = self.shared_memory_bytes
        # The run's own objects need room too; above its limit Ray spills to disk.
        limit = max_bytes if shared is None else min(max_bytes, shared // 2)
        self.caches = FrozenCache(limit, functools.cache(nbytes))

    def _with_cached(self, group: WorkGroup) -> tuple[WorkGroup, dict[int, Handle]]:
        """Return the group, marked with which cached states are passed in and which are returned, and those passed in."""
        keep, held = self.caches.wanted(group.clients), self.caches.held(group.clients)
        return replace(group, with_cached=tuple(held), keep_cached=keep), held

    def _keep_cached(self, group: WorkGroup, handles: Sequence[Handle]) -> None:
        for client, handle in zip(group.keep_cached, handles, strict=True):
            self.caches.add(client, handle)

    def begin(  # noqa: B027 - optional
        self, spec_nbytes: int, modules: tuple[str, ...] = (), config_hash: str = ""
    ) -> None:
        """Begin starting in the background; :meth:`start` waits for it and raises its errors.

        Parameters
        ----------
        spec_nbytes
            Upper bound on the bytes of the specification and of everything else that is stored for the workers.
        modules
            What workers will import.
        config_hash
            ``Config.identity``, for whoever looks at the cluster.
        """

    def specify(
        self, make: Callable[..., tuple[WorkerSpec, Any]], *arguments: Any, **here: Any
    ) -> tuple[WorkerSpec, Any]:
        """Return ``make(*arguments)``, the specification and something beside it; :meth:`begin` comes first.

        It is called where torch is imported in any case.

        Parameters
        ----------
        make
            A function of this package, which reads files of this machine.
        here
            Further arguments if that is this process.
        """
        with large_imports():
            return make(*arguments, **here)

    @abstractmethod
    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        """Start the workers; return where each one runs."""

    def refresh(self) -> None:  # noqa: B027 - a fixed set of workers needs none
        """Use nodes that joined the cluster and replace what was lost; called at the start of each round."""

    def recover(self) -> None:  # noqa: B027 - nothing to do if nothing can be lost
        """Restore workers and server after ``StateLost``; the caller then reloads the server's state."""

    @property
    @abstractmethod
    def server(self) -> ServerHandle:
        """The server, wherever it runs."""

    @abstractmethod
    def train(
        self,
        groups: Sequence[WorkGroup],
        state: Handle,
        client_states: Mapping[int, Handle],
        shards: Ranges = (),
        *,
        evaluate_first: bool = False,
        earlier: Mapping[int, Handle] = NONE_EARLIER,
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        """Train the groups; yield each as it finishes, in any order.

        A group whose round is in ``earlier`` starts from the state given there, all others from ``state``.

        Idle workers evaluate the state that the round starts from on ``shards``, as :meth:`evaluate` does; each range is
        yielded as it finishes. With ``evaluate_first`` they do so before they train. The groups' sums go to the server in the
        order of ``groups`` and are released; :meth:`ServerHandle.apply` ends the round. The groups of a server step and a round
        follow each other, and one call has them all.
        """

    @abstractmethod
    def try_fusing(self, state: Handle, clients: Sequence[int]) -> FuseTrial | ClientFailure:
        """Time one step of ``clients`` on one worker, one by one and fused; report why if that fails."""

    @property
    def shared_memory_bytes(self) -> int | None:
        """Bytes that all objects held for the workers may take; None if only the machine limits them."""
        return None

    @abstractmethod
    def evaluate(self, state: Handle, shards: Ranges, *, keep_predictions: bool = False) -> list[Evaluation]:
        """Evaluate the global vector on ranges of validation examples; one result a range, in order.

        With ``keep_predictions`` each has what is predicted for every example as well.
        """

    @abstractmethod
    def evaluate_clients(
        self,
        state: Handle,
        groups: Sequence[tuple[int, ...]],
        client_states: Mapping[int, Handle],
        personal: bool = True,
    ) -> list[Evaluation | ClientFailure]:
        """Evaluate each client of the groups on its held-out examples; one result per client, in order: the counts, or what
        made it fail. With its own prompts, or else, from fresh client states, with the global prompt.
        """

    @abstractmethod
    def generate(self, state: Handle, ranges: Ranges) -> list[Generated]:
        """Write responses with the global vector to ranges of the chosen validation examples; one result a range, in order."""

    @abstractmethod
    def generate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Generated | ClientFailure]:
        """Write responses with the own vector of each client of the groups to its held-out examples; one result per client, in
        order: the responses, or what made it fail.
        """

    @abstractmethod
    def score(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[ScoreReport]:
        """Score the layers on each client of the groups; one report per client, in order."""

    @abstractmethod
    def spectrum(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[SpectrumReport]:
        """Estimate the Hessian spectrum of each client of the groups; one report per client, in order."""

    @abstractmethod
    def put(self, value: Any) -> Handle:
        """Store a value and return its handle."""

    @abstractmethod
    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Return the values of handles."""

    @property
    def replaced_workers(self) -> int:
        """Workers that were lost and replaced so far."""
        return 0

    @property
    def resent_clients(self) -> int:
        """Number of times a client's work was retried so far."""
        return 0

    def recorded(self, record: RoundRecord) -> None:  # noqa: B027 - nobody else looks at this process
        """Show a recorded round to whoever watches the cluster."""

    @property
    def found(self) -> dict[str, Any] | None:
        """Where the run is found in Ray, for its summary; None without Ray, and before it has started."""
        return None

    def peak_memory(self) -> dict[str, Any]:
        """Return peak resident bytes by process: ``driver``, and ``workers`` and ``server`` if they are separate processes."""
        return {"driver": peak_memory_bytes(), "workers": [], "server": None}

    @abstractmethod
    def close(self) -> None:
        """Stop whatever this executor started. May be called twice."""
