"""A run that is looked at from time to time, here or at a URL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import yaml

from fedsim.configuration.yaml_text import load
from fedsim.display.watch.run_state import RunState
from fedsim.records.following import FollowedLog, is_held, source_of
from fedsim.records.remote import is_url

_MOST_BYTES = 2**24
_QUIET_SECONDS = 300.0
"""Where no lock tells whether a run is alive, it counts as silent after this time, or ten of its rounds."""


class WatchedRun:
    """A run, finished or going on; :meth:`look` reads what is new.

    Parameters
    ----------
    place
        Folder or URL.

    Attributes
    ----------
    run
        What is known of it.
    went_back
        Whether the last look found that the run had gone back or begun anew.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.run = RunState(name=PurePath(self.place).name)
        self.went_back = False
        self._source = source_of(place)
        self._log = FollowedLog(self._source)
        self._file = None if is_url(place) else Path(place) / "metrics.jsonl"
        self._unheld = False
        """Whether nobody wrote to the log at the last look."""

    def look(self) -> RunState:
        """Read what is new, and return what is known."""
        held = None if self._file is None else is_held(self._file)  # before the log, whose writer may end just now
        found = self._log.look()
        before = self.run
        if found.anew:
            self.run = RunState(name=before.name)
        self.run.add(found.events)
        self.went_back = found.anew and self.run.last_round < before.last_round
        if (
            found.anew
            or self.run.total_rounds is None
            or any(e["event"] in ("layers", "resumed") for e in found.events)
        ):
            self._read_config()
        if self.run.state in ("running", "silent"):
            self.run.state = "silent" if self._is_silent(held) else "running"
        return self.run

    def _is_silent(self, held: bool | None) -> bool:
        if held is not None:  # twice, since a run that cuts its log back lets go of it for a moment
            unheld, self._unheld = self._unheld, not held
            return unheld and not held
        return self.age_seconds > max(_QUIET_SECONDS, 10 * (self.run.seconds_per_round or 0.0))

    @property
    def age_seconds(self) -> float:
        """Seconds since the last event; 0 before the first."""
        written = self.run.written
        return 0.0 if written is None else max(0.0, (datetime.now(UTC) - written).total_seconds())

    def summary(self) -> dict[str, Any] | None:
        """Return the contents of ``summary.json``; None if there is none, or not all of it yet."""
        text = self._source.read("summary.json", 0, _MOST_BYTES)
        try:
            held = json.loads(text or b"")
        except ValueError:
            return None
        return held if isinstance(held, dict) else None

    def _read_config(self) -> None:
        """Take name, number of rounds and metric from the config on record, whose plug-ins need not be loaded."""
        text = self._source.read("config.yaml", 0, _MOST_BYTES)
        try:
            values = load((text or b"").decode("utf-8", "replace"))
        except yaml.MarkedYAMLError:
            return
        if not isinstance(values, dict):
            return
        if isinstance(values.get("rounds"), int):
            self.run.total_rounds = values["rounds"]
        self.run.name = str(values.get("name") or self.run.name)
        evaluation = values.get("evaluation")
        asked = evaluation.get("generate") if isinstance(evaluation, Mapping) else None
        named = asked.get("metrics") if isinstance(asked, Mapping) else None
        if isinstance(named, list):
            self.run.text_metrics = [str(name) for name in named]
        data = values.get("data")
        self.run.metric_name = _metric_name(data.get("task") if isinstance(data, Mapping) else None)

    def record(self) -> dict[str, Any]:
        """Return what is known as names and values, for ``--json``."""
        run = self.run
        metrics = run.metrics
        course = ("round", "global_metric", "train_loss_last", "clients_ok", "clients_failed", "bytes_down", "bytes_up")
        return {
            "what": "run",
            "place": self.place,
            "name": run.name,
            "state": run.state,
            "ended": run.ended,
            "rounds": run.last_round,
            "rounds_total": run.total_rounds,
            "metric_name": run.metric_name,
            "metric": metrics[-1] if metrics else None,
            "best_metric": max(metrics) if metrics else None,
            "bytes_down": run.total("bytes_down"),
            "bytes_up": run.total("bytes_up"),
            "clients_failed": run.total("clients_failed"),
            "seconds": run.clock_seconds,
            "seconds_per_round": run.seconds_per_round,
            "seconds_left": run.seconds_left,
            "written": None if run.written is None else run.written.isoformat(timespec="milliseconds"),
            "course": [{name: each.get(name) for name in (*course, "seconds_round")} for each in run.rounds],
            "events": [{"time": time, "event": kind, "sentence": words} for time, kind, words in run.told],
        }


def _metric_name(task: Any) -> str:
    from fedsim.core.errors import FedsimError
    from fedsim.data.tasks import resolve_task

    if isinstance(task, Mapping):
        return str(task.get("metric") or "accuracy")
    try:
        return resolve_task(str(task)).metric
    except FedsimError:  # of a plug-in that is not loaded
        return "metric"
