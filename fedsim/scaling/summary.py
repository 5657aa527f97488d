"""Summary of a study's runs, per point and overall: the contents of ``scaling.json``."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import Any

from fedsim.scaling.accounting import ActorSeconds, Efficiency, Evenness, Timed, evenness, strong_scaling, weak_scaling
from fedsim.scaling.points import Point
from fedsim.scaling.prediction import Predictions
from fedsim.scaling.records import Run, mean, median, usual
from fedsim.scaling.study import Failure

_WORK_TOLERANCE = 0.1


@dataclass(frozen=True)
class PointSummary:
    """Summary of a point. Medians and sums are over the rounds after the first, of all repeats."""

    point: Point
    workers: int
    repeats: int
    rounds: int
    """Rounds that medians and sums are over."""
    first_only: bool
    """Whether there is only the first round, so that medians and sums include its warm-up."""
    seconds_start: float
    """From the command to the first round; median over repeats, as are the next two."""
    seconds_end: float
    """From the last round to the end of the process."""
    seconds_first_round: float
    seconds_round: float
    """Median wall time of a round, the mean of buffered steps; that of the first if there are no others."""
    seconds_rounds: tuple[float, ...]
    """Wall time of each round in the median."""
    client_updates_per_second: float
    """Usable client updates divided by wall time, summed over rounds."""
    seconds_client_update: float
    """Wall time without what evaluation took of it, divided by usable client updates."""
    parts: ActorSeconds
    """Time accounting, summed over rounds."""
    first_parts: ActorSeconds
    """The same for first rounds."""
    client_steps: float
    """Mean local optimizer steps per round."""
    bytes_down: float
    """Mean bytes per round, all clients together."""
    bytes_up: float
    seconds_simulated: float | None
    """Mean simulated time of a round; None without a clock."""
    seconds_simulated_client_update: float | None
    """Simulated time divided by the usable client updates that rounds took in."""
    buffered: bool
    """Whether rounds are the server steps of buffered rounds; their wall time is then a mean, not a median."""
    peak_driver_bytes: int | None
    peak_worker_bytes: int | None
    """Of the largest worker; None if workers run in the driver process."""
    peak_server_bytes: int | None

    def record(self) -> dict[str, Any]:
        """Return the point's entry of ``scaling.json``."""
        values = asdict(self)
        del values["point"], values["parts"], values["first_parts"]
        return {
            "clients": self.point.clients,
            "cohort": self.point.cohort,
            "actors": self.point.actors,
            **values,
            "actor_seconds": asdict(self.parts),
            "shares": self.parts.shares(),
            "first_round_shares": self.first_parts.shares(),
        }


@dataclass(frozen=True)
class StudySummary:
    """Results of a study."""

    points: tuple[PointSummary, ...]
    failures: tuple[Failure, ...]
    strong: tuple[Efficiency, ...]
    weak: tuple[Efficiency, ...]
    even: tuple[Evenness, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    """Versions of fedsim and of the packages that its figures depend on."""
    predictions: Predictions = field(default_factory=Predictions)
    """What the cost model predicts (``--predict``)."""

    @property
    def has_clock(self) -> bool:
        """Whether there is simulated time."""
        return any(each.seconds_simulated is not None for each in self.points)

    @property
    def buffered(self) -> bool:
        """Whether rounds are the server steps of buffered rounds."""
        return any(each.buffered for each in self.points)

    def record(self) -> dict[str, Any]:
        """Return the contents of ``scaling.json``."""
        return {
            "versions": self.versions,
            "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "system": platform.platform()},
            "points": [point.record() for point in self.points],
            "failures": [
                {**asdict(failure.point), "repeat": failure.repeat, "sentence": failure.sentence}
                for failure in self.failures
            ],
            "strong_scaling": [asdict(entry) for entry in self.strong],
            "weak_scaling": [asdict(entry) for entry in self.weak],
            "client_update": [{**asdict(entry), "ratio": entry.ratio} for entry in self.even],
            "predictions": self.predictions.record(),
            "notes": list(self.notes),
        }


def summarise(
    runs: Sequence[Run], failures: Sequence[Failure], notes: Sequence[str], predictions: Predictions | None = None
) -> StudySummary:
    """Return the summary of all finished runs; points are ordered by clients, cohort and actors."""
    by_point: dict[Point, list[Run]] = {}
    for run in runs:
        by_point.setdefault(run.point, []).append(run)
    points = tuple(sorted((_of_point(point, runs) for point, runs in by_point.items()), key=_order))
    timed = [
        Timed(each.point.clients, each.point.cohort, each.workers, each.seconds_round, each.client_steps)
        for each in points
    ]
    strong, weak = strong_scaling(timed), weak_scaling(timed)
    even = evenness([(each.workers, each.seconds_client_update) for each in points])
    notes = [*notes, *(_notes(points, strong, weak) if points else ())]
    versions = runs[0].versions if runs else {}
    results = points, tuple(failures), tuple(strong), tuple(weak), tuple(even), tuple(notes), versions
    return StudySummary(*results, predictions or Predictions())


def _notes(points: Sequence[PointSummary], strong: Sequence[Efficiency], weak: Sequence[Efficiency]) -> Iterator[str]:
    """Yield notes on missing and misleading figures."""
    if any(each.first_only for each in points):
        yield "only one round was run, so the figures include its warm-up; give --rounds 2 or more"
    if not strong:
        yield "no strong scaling: it needs points with the same clients and cohort and different --actors"
    if not weak:
        yield (
            "no weak scaling: it needs points with the same clients whose --cohort grows with --actors, such as "
            "--cohort 10,20 --actors 1,2"
        )
    for kind, entries in (("strong", strong), ("weak", weak)):
        if off := [entry for entry in entries if abs(entry.work - 1) > _WORK_TOLERANCE]:
            worst = max(off, key=lambda entry: abs(entry.work - 1))
            yield (
                f"{kind} scaling, {worst.clients:,} clients, {worst.cohort:,} a round, {worst.actors} actors: the cohorts that "
                f"were drawn had {worst.work:.2f} times the local steps that the efficiency assumes; "
                "client.steps=8 or partition.kind=iid make clients equal"
            )


def _order(summary: PointSummary) -> tuple[int, int, int, str]:
    return summary.point.clients, summary.point.cohort, summary.workers, str(summary.point.actors)


def _of_point(point: Point, runs: Sequence[Run]) -> PointSummary:
    first = [run.rounds[0] for run in runs]
    later = [each for run in runs for each in run.rounds[1:]]
    rounds = later or first
    walls, updates = [each.wall for each in rounds], sum(each.updates for each in rounds)
    simulated, taken_in = mean([each.seconds_simulated for each in rounds]), sum(each.clients_ok for each in rounds)
    evaluated = sum(each.parts.evaluation / each.times.actors for each in rounds)
    drivers, workers, servers = zip(*(_peaks(run) for run in runs), strict=True)
    return PointSummary(
        point=point,
        workers=runs[0].workers,
        repeats=len(runs),
        rounds=len(rounds),
        first_only=not later,
        seconds_start=median([run.start_seconds for run in runs]),
        seconds_end=median([run.end_seconds for run in runs]),
        seconds_first_round=median([each.wall for each in first]),
        seconds_round=usual(walls, buffered=runs[0].buffered),
        seconds_rounds=tuple(walls),
        client_updates_per_second=updates / sum(walls),
        seconds_client_update=(sum(walls) - evaluated) / max(updates, 1),
        parts=reduce(add, (each.parts for each in rounds)),
        first_parts=reduce(add, (each.parts for each in first)),
        client_steps=_mean([each.client_steps for each in rounds]),
        bytes_down=_mean([each.bytes_down for each in rounds]),
        bytes_up=_mean([each.bytes_up for each in rounds]),
        seconds_simulated=simulated,
        seconds_simulated_client_update=None if simulated is None else simulated * len(rounds) / max(taken_in, 1),
        buffered=runs[0].buffered,
        peak_driver_bytes=_largest(drivers),
        peak_worker_bytes=_largest(workers),
        peak_server_bytes=_largest(servers),
    )


def _peaks(run: Run) -> tuple[int | None, int | None, int | None]:
    memory = run.peak_memory
    return memory.get("driver"), _largest(memory.get("workers", [])), memory.get("server")


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
