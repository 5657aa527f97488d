"""The clients' states between their visits, owned by the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedsim.core.messages import ClientState
from fedsim.executors.base import Executor, Handle, TrainedGroup


class ClientStates(Mapping[int, Handle]):
    """The clients' states, owned by the driver as handles; a client that has not trained yet has a fresh one."""

    def __init__(self, population: int) -> None:
        self._population = population
        self._handles: dict[int, Handle] = {}

    def __getitem__(self, client: int) -> Handle:
        return self._handles.get(client) or ClientState(client)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._population))

    def __len__(self) -> int:
        return self._population

    def commit(self, trained: Sequence[TrainedGroup]) -> None:
        """Take over the new states of all clients that did not fail."""
        for group in trained:
            for report in group.reports:
                if report.failure is None:
                    self._handles[report.client] = group.states[report.client]

    def visited(self) -> dict[int, Handle]:
        """Return the handles of clients that have trained, ascending."""
        return dict(sorted(self._handles.items()))

    def restore(self, states: Sequence[ClientState], executor: Executor) -> None:
        """Take over the states of a checkpoint."""
        self._handles = {state.client: executor.put(state) for state in states}
