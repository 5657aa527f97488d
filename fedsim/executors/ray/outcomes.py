"""Outcomes of calls, reassembled where a call was sent client by client; excluded clients are remembered for a repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.messages import ClientFailure
from fedsim.executors.ray.dispatch import Done, Failed
from fedsim.executors.ray.failures import FailureKind
from fedsim.executors.ray.queues import Call

_MAX_KEPT = 10_000


@dataclass(frozen=True)
class _Reason:
    kind: FailureKind
    message: str


class LeftOut:
    """Clients found at fault and left out of a round.

    A round may have to be repeated because other state was lost, perhaps through such a client. It is not retried
    then: that would cost the same actors again, and the round would differ.
    """

    def __init__(self) -> None:
        self._reasons: dict[tuple[int, int], _Reason] = {}
        """By round, counted from 0, and client; the oldest first."""

    def add(self, failed: Failed) -> None:
        """Remember the clients of a failed call, if they are at fault."""
        if not failed.at_fault:
            return
        for client in failed.call.clients:
            self._reasons[failed.call.round, client] = _Reason(failed.kind, failed.message)
        while len(self._reasons) > _MAX_KEPT:
            del self._reasons[next(iter(self._reasons))]

    def sort_out(self, calls: Iterable[Call]) -> tuple[list[Call], list[Failed]]:
        """Return the calls to make and the known failures; groups with excluded clients are sent client by client."""
        to_make: list[Call] = []
        known: list[Failed] = []
        for call in calls:
            if not any((call.round, client) in self._reasons for client in call.clients):
                to_make.append(call)
                continue
            for part in [call] if call.split is None else call.split():
                reason = self._reasons.get((call.round, part.clients[0]))
                if reason is None:
                    to_make.append(part)
                else:
                    known.append(Failed(part, reason.kind, reason.message))
        return to_make, known


def whole(outcomes: Iterable[Done | Failed]) -> Iterator[tuple[int, Sequence[Done | Failed]]]:
    """Yield each call's index and outcome as soon as all its parts are there.

    Yields
    ------
    tuple of int and sequence
        One outcome, or one for each part, in the order of the parts.
    """
    gathered: dict[int, dict[int, Done | Failed]] = {}
    for outcome in outcomes:
        call = outcome.call
        parts = gathered.setdefault(call.index, {})
        parts[call.part] = outcome
        if len(parts) == call.parts:
            del gathered[call.index]
            yield call.index, [parts[part] for part in sorted(parts)]


def by_client(outcomes: Iterable[Done | Failed], failed: Callable[[int, ClientFailure], Any]) -> dict[int, Any]:
    """Return the result of each client; ``failed`` makes that of a client whose call failed for good."""
    results: dict[int, Any] = {}
    for outcome in outcomes:
        clients = outcome.call.clients
        if isinstance(outcome, Done):
            results.update(zip(clients, outcome.value, strict=True))
        else:
            failure = ClientFailure(outcome.kind, outcome.message)
            results.update({client: failed(client, failure) for client in clients})
    return results
