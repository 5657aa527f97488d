"""What is known of a run from its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from fedsim.display.report import format_layers, format_metric
from fedsim.display.round_line import RoundLine, main_metric
from fedsim.records.folder_check import ATTACK, CREATED, STOPPED

State = Literal["running", "finished", "interrupted", "failed", "silent"]
"""Silent: it has not ended, but nobody writes to its records any more."""
_RECENT = 10
"""Rounds whose mean pace gives the time left."""


@dataclass
class RunState:
    """A run as its events tell it; :meth:`add` takes more of them."""

    name: str = ""
    total_rounds: int | None = None
    """Rounds of the whole run; None before its config is on record."""
    metric_name: str = "metric"
    text_metrics: Sequence[str] = ()
    """Metrics of what the model writes (evaluation.generate.metrics), the main one first."""
    start: dict[str, Any] | None = None
    """The event of what the model wrote before any training."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """The events ``round``, each round once."""
    told: list[tuple[str, str, str]] = field(default_factory=list)
    """Time, kind and sentence of the events that a user may want to know of."""
    state: State = "running"
    ended: str | None = None
    """How it ended, in words."""
    first_metric: float | None = None
    written: datetime | None = None
    """Time of the last event."""
    clock_seconds: float = 0.0
    """Seconds that the run has taken, up to the last event."""
    _paces: list[tuple[int, float]] = field(default_factory=list)
    """Round and seconds of the run at each of the last events ``round`` of this process."""

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take further events, oldest first."""
        for event in events:
            self._add(event)

    def _add(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        self.state, self.ended = "running", None
        self.written = _time(event) or self.written
        self.clock_seconds = float(event.get("seconds") or 0.0)
        if kind == "round":
            self._add_round(event)
        elif kind == "start":
            self.first_metric = event.get("global_metric")
            self._paces = [(0, self.clock_seconds)]
        elif kind == "generated" and event.get("round") == 0:
            self.start = dict(event)
        elif kind in ("resumed", "recovered"):
            self._cut(int(event.get("round") or 0))
        elif kind == "end":
            early = next((words for _, name, words in reversed(self.told) if name == "stop"), None)
            self.state, self.ended = "finished", f"finished after round {event.get('round')}"
            self.ended += f": {early}" if early and self.told[-1][1] == "stop" else ""
        elif kind == STOPPED:
            reason = event.get("reason")
            self.state = "interrupted" if reason in ("RunInterrupted", "left") else "failed"
            self.ended = f"{self.state}: {event.get('message') or reason}"
        if (words := sentence(event)) is not None:
            self.told.append((str(event.get("time", "")), kind, words))

    def _add_round(self, event: Mapping[str, Any]) -> None:
        self._cut(event["round"] - 1)
        self.rounds.append(dict(event))
        self._paces = [*self._paces, (event["round"], self.clock_seconds)][-_RECENT - 1 :]

    def _cut(self, round: int) -> None:
        """Forget the rounds after ``round``, to which the run has gone back."""
        if self.rounds and self.rounds[-1]["round"] > round:
            self.rounds = [each for each in self.rounds if each["round"] <= round]
            self._paces = []

    @property
    def last_round(self) -> int:
        """The last round on record; 0 before the first."""
        return self.rounds[-1]["round"] if self.rounds else 0

    @property
    def metrics(self) -> list[float]:
        """The metric of each round that has one, that of the start first."""
        values = [self.first_metric, *(each.get("global_metric") for each in self.rounds)]
        return [value for value in values if value is not None]

    @property
    def written_course(self) -> list[tuple[int, float]]:
        """Round and main text metric of each time that the global model wrote, that before any training first."""
        if not self.text_metrics:
            return []
        name = self.text_metrics[0]
        values = [(0, (self.start or {}).get(name))]
        values += [(each["round"], each.get(f"generated_{name}")) for each in self.rounds]
        return [(round, value) for round, value in values if value is not None]

    @property
    def seconds_per_round(self) -> float | None:
        """Mean over the last rounds, with what lies between them; None before the first."""
        if len(self._paces) > 1:
            (first, begun), (last, now) = self._paces[0], self._paces[-1]
            return (now - begun) / (last - first)
        return self.rounds[-1].get("seconds_round") if self.rounds else None

    @property
    def seconds_left(self) -> float | None:
        """Time until the last round, from the last event on; None if it is not known."""
        pace = self.seconds_per_round
        if pace is None or self.total_rounds is None or self.state != "running":
            return None
        return pace * max(0, self.total_rounds - self.last_round)

    def total(self, name: str) -> int:
        """Return the sum of a number over all rounds."""
        return sum(each.get(name) or 0 for each in self.rounds)

    def lines(self, last: int = 0) -> list[RoundLine]:
        """Return the rounds as the progress display shows them; the last so many, if given."""
        return [RoundLine.of(each, main_metric(each, self.text_metrics)) for each in self.rounds[-last:]]


def sentence(event: Mapping[str, Any]) -> str | None:
    """Return an event in words; None for those that every run has in each round."""
    kind, at = event["event"], event.get("round")
    if kind == CREATED:
        return f"begun with fedsim {event.get('fedsim')}"
    if kind == "layers":
        return f"exchanges layers {format_layers(event.get('layers') or [], event.get('num_layers'))}"
    if kind == "start":
        return f"starts at {format_metric(event.get('global_metric'))}"
    if kind == "resumed":
        return f"continues from the state after round {at}"
    if kind == "recovered":
        return f"went back to the state after round {at}: {event.get('reason')}"
    if kind == "client_failure":
        return f"client {event.get('client')} failed in round {at}: {event.get('message')}"
    if kind == ATTACK:
        return f"{len(event.get('clients') or [])} clients attack ({event.get('kind')})"
    if kind == "stop":
        return str(event.get("reason"))
    if kind == STOPPED:
        return f"stopped: {event.get('message') or event.get('reason')}"
    return "finished" if kind == "end" else None


def _time(event: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(event.get("time")).replace("Z", "+00:00")).astimezone(UTC)
    except ValueError:
        return None
