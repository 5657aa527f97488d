"""The trackers of a run: made from its config, told of everything, and ended with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import FedsimError
from fedsim.core.plugins import guarded
from fedsim.records.trackers.base import TRACKERS, Status, TrackedRun, Tracker
from fedsim.records.trackers.delivery import Delivery
from fedsim.records.trackers.state import TrackedState

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

Event = Callable[..., None]
Note = Callable[[str], None]


def make_trackers(config: Config) -> dict[str, Tracker]:
    """Return the trackers that a config names.

    Raises
    ------
    ConfigError
        If one cannot be used on this machine.
    """
    made: dict[str, Tracker] = {}
    for name in config.tracking.names:
        if name in TRACKERS:
            with guarded(f"tracker {name!r}", TRACKERS.origin(name)):
                made[name] = TRACKERS[name].of(config.params.get(name))
                made[name].check()
        else:
            made[name] = _own(name, config)
            made[name].check()
    return made


def _own(name: str, config: Config) -> Tracker:
    tracking = config.tracking
    if name == "wandb":
        from fedsim.records.trackers.wandb_tracker import WandbTracker

        assert tracking.wandb is not None
        return WandbTracker(tracking.wandb, tracking.flush_seconds)
    if name == "mlflow":
        from fedsim.records.trackers.mlflow_tracker import MlflowTracker

        assert tracking.mlflow is not None
        return MlflowTracker(tracking.mlflow)
    from fedsim.records.trackers.tensorboard_tracker import TensorBoardTracker

    return TensorBoardTracker()


def _nowhere(*words: Any, **fields: Any) -> None:
    """Take what nobody looks at."""


class Trackers:
    """Tells all trackers of a run what happens, without ever waiting for one before its end.

    A tracker that fails is one event ``tracker_failed`` and one note; the run goes on.

    Parameters
    ----------
    made
        From :func:`make_trackers`.
    event, note
        Record an event and show a line; only called by the run's own thread.
    """

    def __init__(
        self,
        made: Mapping[str, Tracker] | None = None,
        event: Event = _nowhere,
        note: Note = _nowhere,
        flush_seconds: float = 60.0,
    ) -> None:
        self._made = made or {}
        self._event, self._note = event, note
        self._flush_seconds = flush_seconds
        self._deliveries: dict[str, Delivery] = {}
        self._sent: dict[str, int] = {}
        """The last round put into each line."""
        self._told: set[str] = set()
        self._state: TrackedState | None = None
        self._summary: Mapping[str, Any] = {}

    @contextmanager
    def following(
        self,
        run: TrackedRun,
        config: Mapping[str, Any],
        first_round: int = 0,
        recorded: Iterable[Mapping[str, Any]] = (),
        status: Callable[[BaseException], Status] = lambda error: "failed",
    ) -> Iterator[Trackers]:
        """Track a run in this block, and end the tracking however it is left.

        Parameters
        ----------
        first_round
            The first round that is still to come; 0 if the run is new or starts over.
        recorded
            Records of earlier rounds, for trackers that do not have them.
        status
            The run's status, by the exception that leaves the block.
        """
        self._start(run, config, first_round, recorded)
        try:
            yield self
        except BaseException as error:
            with suppress(FedsimError):  # the other one ended the run
                self._end(status(error))
            raise
        self._end("finished")

    def _start(
        self, run: TrackedRun, config: Mapping[str, Any], first_round: int, recorded: Iterable[Mapping[str, Any]]
    ) -> None:
        if not self._made:
            return
        self._state = TrackedState(run.folder)
        for name, tracker in self._made.items():
            self._deliveries[name] = Delivery(name)
            self._sent[name] = self._state.last_round(name)
            self._deliveries[name].put("start", self._starting(name, tracker, run, config), needed=True)
        if self._state.begun:
            self.go_back(first_round)
        for record in recorded:
            self.round(record)

    def _starting(
        self, name: str, tracker: Tracker, run: TrackedRun, config: Mapping[str, Any]
    ) -> Callable[[], object]:
        state = self._state
        assert state is not None

        def start() -> None:
            known = state.id(name)
            begun = tracker.start(run, config, known)
            state.note(name, id=begun if begun is not None else known or run.name)

        return start

    def round(self, record: Mapping[str, Any]) -> None:
        """Send the record of a round to all trackers that do not have it."""
        number = int(record["round"])
        for name, tracker in self._made.items():
            if number > self._sent[name]:
                self._sent[name] = number
                self._deliveries[name].put(f"round {number}", self._sending(name, tracker, record))
        self._tell()

    def _sending(self, name: str, tracker: Tracker, record: Mapping[str, Any]) -> Callable[[], object]:
        state = self._state
        assert state is not None

        def send() -> None:
            tracker.round(record)
            state.note(name, round=int(record["round"]))

        return send

    def go_back(self, first_round: int) -> None:
        """Take back ``first_round`` and later rounds, where a tracker can."""
        for name, tracker in self._made.items():
            if tracker.can_go_back:
                self._sent[name] = min(self._sent[name], first_round - 1)
                self._deliveries[name].put("go_back", lambda tracker=tracker: tracker.go_back(first_round))  # type: ignore[misc]

    def results(self, summary: Mapping[str, Any], pictures: Iterable[Path], artifacts: Iterable[Path]) -> None:
        """Send what a finished run has made."""
        self._summary = summary
        pictures, artifacts = list(pictures), list(artifacts)
        for name, tracker in self._made.items():
            line = self._deliveries[name]
            for path in pictures:
                line.put(f"picture {path.name}", lambda t=tracker, p=path: t.picture(p.stem, p))  # type: ignore[misc]
            for path in artifacts:
                line.put(f"artifact {path.name}", lambda t=tracker, p=path: t.artifact(p))  # type: ignore[misc]

    def _end(self, status: Status) -> None:
        for name, tracker in self._made.items():
            self._deliveries[name].put("finish", lambda t=tracker: t.finish(self._summary, status))  # type: ignore[misc]
        until = time.monotonic() + self._flush_seconds
        for line in self._deliveries.values():
            line.end()
        for line in self._deliveries.values():
            line.wait(until - time.monotonic())
        self._tell()
        for name, line in self._deliveries.items():
            if line.missed:
                self._note(
                    f"warning: the tracker {name} missed {line.missed} calls; the run's own records have everything"
                )

    def _tell(self) -> None:
        """Record and show the failures so far, each tracker's first one."""
        for name, line in self._deliveries.items():
            if line.reason is not None and name not in self._told:
                self._told.add(name)
                self._event("tracker_failed", tracker=name, reason=line.reason)
                self._note(
                    f"warning: the tracker {name} failed ({line.reason}); the run goes on, and {name} gets later what it can"
                )
