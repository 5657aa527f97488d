"""Client failures: recorded, then the run stops or drops the client, as set by ``client.on_failure``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fedsim.core.errors import ClientError
from fedsim.core.messages import ClientFailure, ClientReport, ScoreReport, SpectrumReport

Report = TypeVar("Report", ClientReport, ScoreReport, SpectrumReport)

_NOTES_AT_ONCE = 5
"""Failed clients reported one by one; the rest are only counted."""
_TRACEBACKS = 100
"""Distinct tracebacks to record at most, so that a client that fails in every round does not fill the disk."""


def usable(reports: Sequence[Report], what: str, on_failure: str, note: Callable[[str], None]) -> list[Report]:
    """Return the reports of clients that did not fail; used where layers are chosen.

    Parameters
    ----------
    what
        The clients' task, as named in messages: ``to score the layers``.

    Raises
    ------
    ClientError
        If a client failed and ``on_failure`` is not ``drop``, or if all failed.
    """
    for report in reports:
        if report.failure is None:
            continue
        sentence = f"client {report.client} failed {what}: {report.failure.message}"
        if on_failure != "drop":
            raise ClientError(f"{sentence}\n{report.failure.traceback}".rstrip())
        note(f"warning: {sentence}; left out")
    kept = [report for report in reports if report.failure is None]
    if not kept:
        raise ClientError(f"none of {len(reports)} clients gave a usable result {what}")
    return kept


class Failures:
    """Records client failures and stops the run if ``client.on_failure`` requires it.

    Parameters
    ----------
    on_failure
        ``client.on_failure``.
    event
        Writes an event to the run's records.
    note
        Called with messages for the user.
    """

    def __init__(self, on_failure: str, event: Callable[..., None], note: Callable[[str], None]) -> None:
        self._drops = on_failure == "drop"
        self._event = event
        self._note = note
        self._tracebacks: set[str] = set()
        """Tracebacks already recorded."""

    def of_round(self, round: int, reports: Sequence[ClientReport]) -> None:
        """Handle the clients of a round that returned no usable result.

        Parameters
        ----------
        round
            Counted from 1.

        Raises
        ------
        ClientError
            With the original traceback if a client's own work raised and ``client.on_failure`` is not ``drop``; or if no
            client is left.
        """
        failed = [report for report in reports if report.failure is not None]
        told = []
        for report in failed:
            assert report.failure is not None
            on_node = f" on {report.node}" if report.node else ""
            what = f"client {report.client} failed in round {round}{on_node}"
            told.append(self._one(what, round, report.client, report.failure, "left out of this round"))
        self._tell(told, f"round {round}")
        if failed and len(failed) == len(reports):
            first = failed[0].failure
            raise ClientError(
                f"round {round}: none of {len(reports)} clients gave a usable result; the first, client "
                f"{failed[0].client}: {first.message if first else ''}"
            )

    def of_evaluation(self, round: int, failures: Mapping[int, ClientFailure]) -> None:
        """Handle the clients whose own prompts could not be evaluated after a round; errors as in :meth:`of_round`."""
        told = []
        for client, failure in failures.items():
            what = f"client {client} failed in its evaluation after round {round}"
            told.append(self._one(what, round, client, failure, "left out of the personalised figures"))
        self._tell(told, f"the evaluation after round {round}")

    def _one(self, what: str, round: int, client: int, failure: ClientFailure, consequence: str) -> str:
        """Record a failure and return its message for the user."""
        record: dict[str, Any] = {"kind": failure.kind, "message": failure.message}
        known = failure.traceback in self._tracebacks or len(self._tracebacks) >= _TRACEBACKS
        if failure.traceback and not known:
            self._tracebacks.add(failure.traceback)
            record["traceback"] = failure.traceback
        self._event("client_failure", round=round, client=client, **record)
        if failure.kind == "error" and not self._drops:
            raise ClientError(f"{what}: {failure.message}\n{failure.traceback}".rstrip())
        return f"warning: {what}: {failure.message}; {consequence}"

    def _tell(self, sentences: Sequence[str], where: str) -> None:
        for sentence in sentences[:_NOTES_AT_ONCE]:
            self._note(sentence)
        if len(sentences) > _NOTES_AT_ONCE:
            more = len(sentences) - _NOTES_AT_ONCE
            self._note(f"warning: {more} more clients failed in {where}; metrics.jsonl names them all")
