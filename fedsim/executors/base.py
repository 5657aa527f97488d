"""The seam between the round loop and whatever runs it: one small interface, two executors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

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
from server.sampling import cut

if TYPE_CHECKING:
    import numpy as np

    from clients.worker import WorkerInfo, WorkerSpec
    from server.config import ServerConfig
    from server.core import StepReport

Handle = Any
"""A value of this process (local) or a reference into the object store (Ray). The round loop only passes it on."""


class StateLost(Exception):  # noqa: N818 - the run can go on from an earlier state
    """Objects that the run needs are gone with a worker's node or the server; the message says what needed them.

    After :meth:`Executor.recover` the run goes on from a state that the caller still has.
    """


@dataclass(frozen=True)
class TrainedGroup:
    """What came of one work group."""

    group: WorkGroup
    reports: tuple[ClientReport, ...]
    states: dict[int, Handle]
    """New state of each client of the group; empty where clients keep nothing but the counts in their reports."""


@dataclass(frozen=True)
class EvaluatedShard:
    """What came of one range of validation examples that was evaluated beside a round's training."""

    index: int
    evaluation: Evaluation


class ServerHandle(Protocol):
    """What the round loop asks of the server, wherever it runs."""

    def start(
        self,
        config: ServerConfig,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
    ) -> None:
        """Make the server, or make it anew with other layers; see :class:`server.core.Server`."""

    def global_state(self) -> Handle:
        """Store the state that the next round starts from, and return its handle; called once a round."""

    def apply(self, round: int, order: tuple[int, ...]) -> StepReport:
        """Let the server step, by the sums of the groups that were trained."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the server's whole state, for a checkpoint."""
        ...

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Give the server the state of a checkpoint."""


class InOrder:
    """Hands things on in the order of their numbers, from 0, whatever order they come in."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, Any] = {}

    def next(self, number: int, thing: Any) -> Iterator[Any]:
        """Take a thing; yield those whose turn it is now."""
        self._early[number] = thing
        while self._next in self._early:
            yield self._early.pop(self._next)
            self._next += 1


class Executor(ABC):
    """Runs work groups. Results do not depend on which executor runs them, nor on how many workers it has."""

    per_client = False
    """Whether every client has a worker of its own, so that groups are sent out client by client."""

    def __init__(self, check_interrupt: Callable[[], None]) -> None:
        self._check_interrupt = check_interrupt
        self.fuse = 1
        """Clients that share passes through the backbone."""
        self.caches = FrozenCache.none()
        """Trunks kept from round to round."""

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let no interrupt through in this block; one that comes is answered after it."""
        check, self._check_interrupt = self._check_interrupt, lambda: None
        try:
            yield
        finally:
            self._check_interrupt = check

    def groups(self, round: int, order: Sequence[int], group_size: int, work_N: np.ndarray) -> list[WorkGroup]:
        """Cut a cohort into work groups; where every client has a worker of its own, each group goes out in parts.

        ``work_N`` is the work of each client of the population; see :func:`server.sampling.cut`.
        """
        groups: list[WorkGroup] = []
        for number, clients in enumerate(cut(order, group_size, work_N)):
            if self.per_client:
                groups += [WorkGroup(round, number, (client,), part) for part, client in enumerate(clients)]
            else:
                groups.append(WorkGroup(round, number, clients, fuse=self.fuse))
        return groups

    def keep_cached_within(self, max_bytes: int, nbytes: Callable[[CacheKey], int]) -> None:
        """Keep trunks from round to round; ``nbytes`` tells their sizes, 0 where there is none."""
        shared = self.shared_memory_bytes
        # Objects of the run itself need room too; above its limit Ray would write to disk.
        limit = max_bytes if shared is None else min(max_bytes, shared // 2)
        self.caches = FrozenCache(limit, nbytes)

    def _with_cached(self, group: WorkGroup) -> tuple[WorkGroup, dict[int, Handle]]:
        """Return a group that says which of its clients' trunks are handed in and handed back, and those handed in."""
        keep, held = self.caches.wanted(group.clients), self.caches.held(group.clients)
        return replace(group, with_cached=tuple(held), keep_cached=keep), held

    def _keep_cached(self, group: WorkGroup, handles: Sequence[Handle]) -> None:
        for client, handle in zip(group.keep_cached, handles, strict=True):
            self.caches.add(client, handle)

    def begin(self, spec_nbytes: int, modules: tuple[str, ...] = ()) -> None:  # noqa: B027 - what need not start early does nothing
        """Begin to start, beside whatever the caller does until :meth:`start`; what fails is raised there.

        Parameters
        ----------
        spec_nbytes
            Bytes, at most, of the specification to come and of what else is kept for the workers.
        modules
            What workers will import.
        """

    @abstractmethod
    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        """Start the workers; return where each of them runs."""

    def refresh(self) -> None:  # noqa: B027 - what has a fixed set of workers has nothing to do
        """Take in what has joined the cluster, and make up for what is gone; called at the start of each round."""

    def recover(self) -> None:  # noqa: B027 - what loses nothing has nothing to do
        """Make workers and server fit for work again after ``StateLost``; the caller then gives the server its state anew."""

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
        shards: Sequence[tuple[int, int]] = (),
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        """Train the groups; yield each as it is done, in any order.

        Workers that have nothing left to train evaluate the state that the round starts from on ``shards``, as
        :meth:`evaluate` does; each is yielded as it is done. The groups' sums go to the server, in the order of ``groups``, and
        are let go; :meth:`ServerHandle.apply` ends the round.
        """

    @abstractmethod
    def try_fusing(self, state: Handle, clients: Sequence[int]) -> FuseTrial | ClientFailure:
        """Let one worker time a step of ``clients``, one after another and side by side; or say why that failed."""

    @property
    def shared_memory_bytes(self) -> int | None:
        """Bytes that all objects held for the workers may take, or None where there is no bound but the machine's."""
        return None

    @abstractmethod
    def evaluate(self, state: Handle, shards: Sequence[tuple[int, int]]) -> list[Evaluation]:
        """Evaluate the global vector on ranges of validation examples; one result a range, in order."""

    @abstractmethod
    def evaluate_clients(
        self,
        state: Handle,
        groups: Sequence[tuple[int, ...]],
        client_states: Mapping[int, Handle],
        personal: bool = True,
    ) -> list[Evaluation | ClientFailure]:
        """Evaluate each client of the groups on its held-out examples; one result a client, in order: the counts, or what
        made it fail. With its own prompts, or else, from fresh client states, with the global prompt.
        """

    @abstractmethod
    def score(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[ScoreReport]:
        """Let each client of the groups score the layers; one report a client, in order."""

    @abstractmethod
    def spectrum(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[SpectrumReport]:
        """Let each client of the groups estimate its Hessian's spectrum; one report a client, in order."""

    @abstractmethod
    def put(self, value: Any) -> Handle:
        """Turn a value into a handle."""

    @abstractmethod
    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """Return the values of handles."""

    @property
    def replaced_workers(self) -> int:
        """Workers lost to the system and replaced so far."""
        return 0

    @property
    def resent_clients(self) -> int:
        """Clients whose work was sent again so far, each time counted."""
        return 0

    def peak_memory(self) -> dict[str, Any]:
        """Return the peak resident bytes of each process: ``driver``, and ``workers`` and ``server`` where they are others."""
        return {"driver": peak_memory_bytes(), "workers": [], "server": None}

    @abstractmethod
    def close(self) -> None:
        """Stop whatever this executor started. May be called twice."""
