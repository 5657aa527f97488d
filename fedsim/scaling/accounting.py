"""Time accounting of a round: from its records to shares of the actors' time. Pure functions.

The unit is the actor-second: one actor for one second. A round of ``wall`` seconds with n actors has n * wall of them, and
each of them is counted once:

========================  ==========================================================================================
compute                   an actor trained a client
orchestration             training was under way, and not even the busiest actor trained: calls and results were on
                          their way
idle                      training was under way, and an actor had less to do than the busiest one
reduce                    the server folded updates and stepped
evaluation                the driver waited for an evaluation
rest                      the driver did anything else: records, checkpoint, progress
========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

_CLOCK_TOLERANCE = 0.01
"""Tolerated clock drift between machines; a larger discrepancy is an error."""


@dataclass(frozen=True)
class RoundTimes:
    """Recorded times of a round, in seconds."""

    wall: float
    """From the end of the previous round to the end of this one."""
    train: float
    """The driver waited for work groups."""
    server: float
    """The driver waited for the server."""
    evaluate: float
    """An evaluation was under way."""
    busy: tuple[float, ...]
    """Seconds each worker spent training clients; workers that trained none may be missing."""
    actors: int


@dataclass(frozen=True)
class ActorSeconds:
    """Actor-seconds by part, in the order of tables and plots."""

    compute: float = 0.0
    evaluation: float = 0.0
    reduce: float = 0.0
    orchestration: float = 0.0
    idle: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All actor-seconds: actors times wall time."""
        return sum(getattr(self, name) for name in PARTS)

    def shares(self) -> dict[str, float]:
        """Return each part divided by the total."""
        total = self.total
        return {name: getattr(self, name) / total if total else 0.0 for name in PARTS}

    def __add__(self, other: ActorSeconds) -> ActorSeconds:
        return ActorSeconds(*(getattr(self, name) + getattr(other, name) for name in PARTS))


PARTS: tuple[str, ...] = tuple(field.name for field in fields(ActorSeconds))
"""Names of the parts."""


def account(times: RoundTimes) -> ActorSeconds:
    """Split the actor-seconds of a round into parts, which add up to ``times.actors * times.wall``.

    With n actors, b_a the busy seconds of worker a, C their sum, and m the busiest worker's (or C / n if that is larger:
    a lost actor and its replacement count as two workers):

    ``compute = C``, ``idle = n m - C``, ``orchestration = n (train - m)``, ``reduce = n server``,
    ``evaluation = n min(evaluate, wall - train - server)``, ``rest`` = what is left.

    An evaluation that overlapped the next round's training delayed the driver only by as much as the
    round's wall time has room for; no more of it is counted.

    Raises
    ------
    ValueError
        If the records are inconsistent: more training time than wall time.
    """
    train, server = times.train, times.server
    if max((*times.busy, 0.0)) > train * (1 + _CLOCK_TOLERANCE) + 1e-3:
        raise ValueError(f"a worker trained for {max(times.busy)} s in a phase of {train} s")
    # The wall time comes from a different clock reading than its parts.
    wall = max(times.wall, train + server)
    busy = [min(seconds, train) for seconds in times.busy]
    compute = min(sum(busy), times.actors * train)
    busiest = max((*busy, compute / times.actors))
    evaluation = min(times.evaluate, wall - train - server)
    return ActorSeconds(
        compute=compute,
        evaluation=times.actors * evaluation,
        reduce=times.actors * server,
        orchestration=times.actors * (train - busiest),
        idle=times.actors * busiest - compute,
        rest=times.actors * (wall - train - server - evaluation),
    )


@dataclass(frozen=True)
class Timed:
    """A point with the wall time of its rounds, for computing efficiencies."""

    clients: int
    cohort: int
    actors: int
    seconds: float
    steps: float
    """Local optimizer steps per round, the measure of work."""


@dataclass(frozen=True)
class Efficiency:
    """Parallel efficiency of a point."""

    clients: int
    cohort: int
    actors: int
    base_actors: int
    """The fewest actors in the series: the baseline."""
    speedup: float
    """Client updates per second relative to the base."""
    efficiency: float
    """1 is ideal."""
    work: float
    """Local steps per round relative to what the formula assumes (the base's, or in weak scaling as many times
    more as there are actors). Below 1, the efficiency is overstated."""


def strong_scaling(points: Sequence[Timed]) -> list[Efficiency]:
    """Return E(n) = b T(b) / (n T(n)) of points that do the same work with more actors; b is the fewest, usually 1.

    Series with a single number of actors are left out.
    """
    series: dict[tuple[int, int], dict[int, Timed]] = {}
    for point in points:
        series.setdefault((point.clients, point.cohort), {}).setdefault(point.actors, point)
    found = []
    for members in series.values():
        base = members[min(members)]
        found += [_compare(base, members[actors], growth=1.0) for actors in sorted(members) if len(members) > 1]
    return found


def weak_scaling(points: Sequence[Timed]) -> list[Efficiency]:
    """Return E(n) = T(b, b w) / T(n, n w) of points whose cohort grows with the actors: w clients of a round per actor.

    The number of registered clients stays the same, and with it the work per client. Series with a single number of
    actors are left out.
    """
    series: dict[tuple[int, float], dict[int, Timed]] = {}
    for point in points:
        series.setdefault((point.clients, point.cohort / point.actors), {}).setdefault(point.actors, point)
    found = []
    for members in series.values():
        base = members[min(members)]
        found += [
            _compare(base, members[actors], growth=actors / base.actors)
            for actors in sorted(members)
            if len(members) > 1
        ]
    return found


@dataclass(frozen=True)
class Evenness:
    """How far the time of a client update differs between points with equally many actors."""

    actors: int
    least_seconds: float
    most_seconds: float

    @property
    def ratio(self) -> float:
        """The most divided by the least; 1 where neither registered clients nor the cohort cost an update anything."""
        return self.most_seconds / self.least_seconds


def evenness(points: Sequence[tuple[int, float]]) -> list[Evenness]:
    """Return the range of the times of a client update, by number of actors.

    Parameters
    ----------
    points
        Actors and seconds per client update of each point. Numbers of actors with a single point are left out.
    """
    series: dict[int, list[float]] = {}
    for actors, seconds in points:
        series.setdefault(actors, []).append(seconds)
    return [Evenness(actors, min(all_), max(all_)) for actors, all_ in sorted(series.items()) if len(all_) > 1]


def _compare(base: Timed, point: Timed, growth: float) -> Efficiency:
    """Compare a point to one with fewer actors, whose cohort is ``growth`` times smaller."""
    speedup = growth * base.seconds / point.seconds
    return Efficiency(
        clients=point.clients,
        cohort=point.cohort,
        actors=point.actors,
        base_actors=base.actors,
        speedup=speedup,
        efficiency=speedup * base.actors / point.actors,
        work=point.steps / (growth * base.steps) if base.steps else 1.0,
    )
