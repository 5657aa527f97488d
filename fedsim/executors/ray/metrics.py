"""Metrics of a run in Ray's own export, which Prometheus scrapes from each node and Grafana shows.

The driver sets figures of a round when it is recorded; actors those that they alone know. Ray sends them to its agent on the
node every ten seconds by default (``RAY_metrics_report_interval_ms``) and when a process disconnects; what an actor observed
since is lost when it is stopped. Ray puts ``ray_`` before the names.

Sums over rounds are gauges too, set to the sum so far, so that none depends on how often the process joined a Ray before.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.util import metrics as ray_metrics

from fedsim.core.memory import peak_memory_bytes
from fedsim.records.columns import TEXT_METRIC_WORDS

if TYPE_CHECKING:
    from fedsim.core.messages import ClientReport
    from fedsim.records.round_record import RoundRecord

RUN_TAGS = ("run", "run_id")
REFRESH_SECONDS = 1.0
"""Ray's shortest interval between two exports."""
_BOUNDARIES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


@dataclass(frozen=True)
class Definition:
    """A metric."""

    kind: Literal["gauge", "sum", "histogram"]
    """A sum is a gauge that only rises: what has come together since the run was begun or resumed."""
    name: str
    meaning: str
    tags: tuple[str, ...] = ()
    """Tags beside those of the run."""

    @property
    def exported(self) -> str:
        """Its name where it is scraped; a histogram's three series add ``_bucket``, ``_count`` and ``_sum``."""
        return f"ray_{self.name}"


ROUND = Definition("gauge", "fedsim_round", "The round recorded last.")
ROUNDS = Definition("gauge", "fedsim_rounds", "Rounds of the whole run.")
METRIC = Definition("gauge", "fedsim_metric", "The task's metric after the round.", ("evaluated",))
LOSS = Definition("gauge", "fedsim_loss", "Mean loss of the round.", ("evaluated",))
GENERATED = Definition(
    "gauge",
    "fedsim_generated",
    "Mean of a text metric over the responses that the model wrote after the round.",
    ("metric",),
)
CLIENTS = Definition("sum", "fedsim_clients", "Clients of recorded rounds by outcome.", ("outcome",))
TRAFFIC = Definition(
    "sum", "fedsim_traffic_bytes", "Bytes that devices received and sent in recorded rounds.", ("direction",)
)
SECONDS = Definition("sum", "fedsim_phase_seconds", "Seconds of recorded rounds by phase.", ("phase",))
REPLACED = Definition("sum", "fedsim_actors_replaced", "Actors that were lost and replaced.")
STORE = Definition("gauge", "fedsim_store_bytes", "Bytes in the cluster's object stores, of all that use it.")
CLIENT_SECONDS = Definition(
    "histogram", "fedsim_client_seconds", "Seconds of a client update, the mean of a work group.", ("actor",)
)
MEMORY = Definition("gauge", "fedsim_memory_bytes", "Peak resident bytes of a process.", ("actor",))
ALL = (ROUND, ROUNDS, METRIC, LOSS, GENERATED, CLIENTS, TRAFFIC, SECONDS, REPLACED, STORE, CLIENT_SECONDS, MEMORY)

OUTCOMES = ("ok", "failed", "retried", "absent", "late", "too_small")
EVALUATED = ("global", "personalised", "holdout")
PHASES = ("train", "server", "evaluate")


class Export:
    """Sets a process's metrics.

    Parameters
    ----------
    tags
        Tags that all of them have.
    """

    def __init__(self, tags: dict[str, str]) -> None:
        self._tags = tags
        self._made: dict[Definition, Any] = {}
        """Ray's objects, once they are needed: they belong to the process and to its connection."""
        self._gauges: dict[tuple[str, ...], tuple[Definition, float, dict[str, str]]] = {}
        self._lock = threading.RLock()  # or a refresh could put an old value back

    def set(self, definition: Definition, value: float | None, **tags: str) -> None:
        """Set a gauge, if there is a number."""
        if value is not None and math.isfinite(value):
            tags = {**self._tags, **tags}
            with self._lock:
                self._of(definition).set(value, tags=tags)
                self._gauges[(definition.name, *tags.values())] = definition, value, tags

    def refresh(self) -> None:
        """Set all gauges again: Ray exports a value once, and forgets it after two intervals."""
        with self._lock:
            for definition, value, tags in self._gauges.values():
                self._of(definition).set(value, tags=tags)

    def add(self, definition: Definition, value: float | None, **tags: str) -> None:
        """Add to a sum, if there is a number."""
        if value is not None:
            key = (definition.name, *self._tags.values(), *tags.values())
            with self._lock:
                before = self._gauges[key][1] if key in self._gauges else 0.0
                self.set(definition, before + value, **tags)

    def observe(self, definition: Definition, value: float, **tags: str) -> None:
        """Add a value to a histogram."""
        self._of(definition).observe(value, tags={**self._tags, **tags})

    def _of(self, definition: Definition) -> Any:
        if definition not in self._made:
            self._made[definition] = _create(definition)
        return self._made[definition]


def _create(definition: Definition) -> Any:
    tags = (*RUN_TAGS, *definition.tags)
    if definition.kind == "histogram":
        return ray_metrics.Histogram(definition.name, definition.meaning, _BOUNDARIES, tags)
    return ray_metrics.Gauge(definition.name, definition.meaning, tags)


def endpoints() -> list[str]:
    """Return where each node of the connected Ray exports metrics, as ``host:port``; none if it does not."""
    nodes = [node for node in ray.nodes() if node["Alive"] and int(node.get("MetricsExportPort") or 0) > 0]
    return sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes)


class Refresher:
    """Calls a function every second in a thread of its own, until it is closed or the process ends."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedsim-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with suppress(Exception):  # a cluster in trouble is the executor's matter; metrics wait for the next time
                self._refresh()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self._closed.set()
        self._thread.join(REFRESH_SECONDS)


class RunMetrics:
    """The driver's metrics of a run.

    Parameters
    ----------
    tags
        Those of the run.
    rounds, done
        Rounds of the whole run, and before this process.
    """

    def __init__(self, tags: dict[str, str], rounds: int, done: int) -> None:
        self._tags = tags
        self._export = Export(tags)
        self._replaced = 0
        self._export.set(ROUNDS, rounds)
        self._export.set(ROUND, done)
        self._refresher = Refresher(self._refresh)

    def recorded(self, record: RoundRecord) -> None:
        """Show a recorded round."""
        to = self._export
        to.set(ROUND, record.round)
        for evaluated in EVALUATED:
            to.set(METRIC, getattr(record, f"{evaluated}_metric"), evaluated=evaluated)
            to.set(LOSS, getattr(record, f"{evaluated}_loss"), evaluated=evaluated)
        to.set(LOSS, record.train_loss_last, evaluated="train")
        for name in TEXT_METRIC_WORDS:
            to.set(GENERATED, getattr(record, f"generated_{name}"), metric=name)
        for outcome in OUTCOMES:
            to.add(CLIENTS, getattr(record, f"clients_{outcome}"), outcome=outcome)
        to.add(TRAFFIC, record.bytes_down, direction="down")
        to.add(TRAFFIC, record.bytes_up, direction="up")
        for phase in PHASES:
            to.add(SECONDS, getattr(record, f"seconds_{phase}"), phase=phase)
        to.add(REPLACED, record.actors_replaced - self._replaced)
        self._replaced = record.actors_replaced

    def of_actor(self, actor: str) -> ActorMetrics:
        """Return what an actor shows, to be sent to it."""
        return ActorMetrics(self._tags, actor)

    def _refresh(self) -> None:
        self._export.set(MEMORY, peak_memory_bytes(), actor="driver")
        self._export.refresh()
        self._export.set(STORE, stored_bytes())

    def close(self) -> None:
        """Show the last values once more, and stop; call before this process leaves Ray, which then sends them."""
        self._refresher.close()
        with suppress(Exception):
            self._export.refresh()


class ActorMetrics:
    """An actor's metrics; the driver makes them and the actor receives them.

    Parameters
    ----------
    tags
        Those of the run.
    actor
        Name of the actor within the run.
    """

    def __init__(self, tags: dict[str, str], actor: str) -> None:
        self._tags = {**tags, "actor": actor}
        self._export: Export
        self._refresher: Refresher

    def begin(self) -> None:
        """Begin, in the actor's process, to show its memory."""
        self._export = export = Export(self._tags)
        self._refresher = Refresher(lambda: export.set(MEMORY, peak_memory_bytes()))

    def trained(self, reports: Sequence[ClientReport]) -> None:
        """Observe a work group."""
        if reports:
            self._export.observe(CLIENT_SECONDS, sum(report.seconds for report in reports) / len(reports))


def stored_bytes() -> float:
    """Return the bytes in the object stores of the connected Ray."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return total.get("object_store_memory", 0.0) - free.get("object_store_memory", 0.0)
