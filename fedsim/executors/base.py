"""The seam between the round loop and whatever runs it: one small interface, two executors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.core.messages import ClientReport, Evaluation, ScoreReport, SpectrumReport, WorkGroup
from server.sampling import cut

if TYPE_CHECKING:
    import numpy as np

    from clients.worker import WorkerInfo, WorkerSpec
    from server.config import ServerConfig
    from server.core import StepReport

Handle = Any
"""A value of this process (local) or a reference into the object store (Ray). The round loop only passes it on."""


@dataclass(frozen=True)
class TrainedGroup:
    """What came of one work group."""

    group: WorkGroup
    reports: tuple[ClientReport, ...]
    update: Handle
    states: dict[int, Handle]
    """New state of each client of the group."""


class Executor(ABC):
    """Runs work groups. Results do not depend on which executor runs them, nor on how many workers it has."""

    per_client = False
    """Whether every client has a worker of its own, so that groups are sent out client by client."""

    def __init__(self, check_interrupt: Callable[[], None]) -> None:
        self._check_interrupt = check_interrupt

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let no interrupt through in this block; one that comes is answered after it."""
        check, self._check_interrupt = self._check_interrupt, lambda: None
        try:
            yield
        finally:
            self._check_interrupt = check

    def groups(self, round: int, order: Sequence[int], group_size: int) -> list[WorkGroup]:
        """Cut a cohort into work groups; where every client has a worker of its own, each group goes out in parts."""
        groups: list[WorkGroup] = []
        for number, clients in enumerate(cut(order, group_size)):
            if self.per_client:
                groups += [WorkGroup(round, number, (client,), part) for part, client in enumerate(clients)]
            else:
                groups.append(WorkGroup(round, number, clients))
        return groups

    @abstractmethod
    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        """Start the workers; return where each of them runs."""

    @abstractmethod
    def start_server(
        self,
        config: ServerConfig,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
    ) -> None:
        """Start the server, or start it anew with other layers."""

    @abstractmethod
    def global_state(self) -> Handle:
        """Store the state that the next round starts from, and return its handle; called once a round."""

    @abstractmethod
    def train(
        self, groups: Sequence[WorkGroup], state: Handle, client_states: Mapping[int, Handle]
    ) -> Iterator[TrainedGroup]:
        """Train the groups; yield each as it is done, in any order."""

    @abstractmethod
    def apply(self, round: int, order: tuple[int, ...], updates: Sequence[Handle]) -> StepReport:
        """Let the server fold the updates and step."""

    @abstractmethod
    def evaluate(self, state: Handle, shards: Sequence[tuple[int, int]]) -> list[Evaluation]:
        """Evaluate the global vector on ranges of validation examples; one result a range, in order."""

    @abstractmethod
    def evaluate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Evaluation]:
        """Evaluate each client of the groups on its held-out examples; one result a client, in order."""

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

    @abstractmethod
    def server_arrays(self) -> dict[str, np.ndarray]:
        """Return the server's whole state, for a checkpoint."""

    @abstractmethod
    def load_server_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Give the server the state of a checkpoint."""

    @property
    def replaced_workers(self) -> int:
        """Workers lost to the system and replaced so far."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Stop whatever this executor started. May be called twice."""
