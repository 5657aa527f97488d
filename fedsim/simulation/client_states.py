"""Client states between rounds, owned by the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fedsim.core.messages import ClientReport, ClientState
from fedsim.executors.base import Executor, Handle, TrainedGroup


class ClientStates(Mapping[int, Handle]):
    """Client states, owned by the driver; a client that has not trained yet has a fresh state.

    A state with tensors is a handle to one object per client, so that any worker can train any client next. A state without
    tensors is held here by value and needs no object; before a client's first training it takes no memory at all.

    Parameters
    ----------
    objects
        Every state is an object, because workers read more of it than its tensors.
    """

    def __init__(self, population: int, *, objects: bool = False) -> None:
        self._population, self._objects = population, objects
        self._handles: dict[int, Handle] = {}
        self._rounds: Counter[int] = Counter()

    def __getitem__(self, client: int) -> Handle:
        handle = self._handles.get(client)
        return ClientState(client) if handle is None else handle

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._population))

    def __len__(self) -> int:
        return self._population

    def commit(self, trained: Sequence[TrainedGroup]) -> None:
        """Store the new states of all clients that did not fail."""
        for group in trained:
            for report in group.reports:
                if report.failure is None:
                    self._handles[report.client] = group.states.get(report.client) or self._counted(report)
                    self._rounds[report.client] += 1

    def _counted(self, report: ClientReport) -> ClientState:
        old: ClientState = self[report.client]
        return ClientState(report.client, old.rounds + 1, old.steps + report.num_steps, last_round=report.round)

    def trained(self) -> dict[int, Handle]:
        """Return the handles of clients that have trained, by ascending id."""
        return dict(sorted(self._handles.items()))

    def rounds_of(self, client: int) -> int:
        """Return the number of rounds in which a client has trained."""
        return self._rounds[client]

    def restore(self, states: Sequence[ClientState], executor: Executor) -> None:
        """Restore the states from a checkpoint."""
        self._handles = {
            state.client: executor.put(state) if state.has_tensors or self._objects else state for state in states
        }
        self._rounds = Counter({state.client: state.rounds for state in states})
