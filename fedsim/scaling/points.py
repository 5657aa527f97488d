"""The points of a study: combinations of the options, as configs that are checked before the first one runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ConfigError, PartitionError, ResourceError
from fedsim.kept.config import WITHOUT

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

CLIENTS_KEY, COHORT_KEY, ACTORS_KEY = "partition.clients", "sampling.clients_per_round", "ray.actors"
SIZE_KEY, AT_ONCE_KEY = "buffer.size", "buffer.concurrency"
_FORCED = ("tracking={plots: false, client_records: true}", *WITHOUT)


@dataclass(frozen=True)
class Point:
    """One combination of the varied options."""

    clients: int
    """Registered clients (``partition.clients``)."""
    cohort: int
    """Clients that a round takes in: ``sampling.clients_per_round``, of buffered rounds ``buffer.size``."""
    actors: int | str
    """``ray.actors``: a number, ``pool`` or ``per_client``; 1 with ``executor=local``."""

    @property
    def name(self) -> str:
        """Name of the point's folder."""
        return f"clients-{self.clients}_cohort-{self.cohort}_actors-{self.actors}"

    @classmethod
    def named(cls, name: str) -> Point:
        """Return the point whose folder has this name."""
        clients, cohort, actors = (part.partition("-")[2] for part in name.split("_", 2))
        return cls(int(clients), int(cohort), int(actors) if actors.isdecimal() else actors)

    def __str__(self) -> str:
        actors = f"{self.actors} {'actor' if self.actors == 1 else 'actors'}"
        return f"{self.clients:,} clients, {self.cohort:,} a round, {actors}"


@dataclass(frozen=True)
class Points:
    """The points of a study in the order in which they run."""

    configs: dict[Point, Config]
    """Config of each point, without ``output``."""
    notes: tuple[str, ...]
    """Notes on points left out and other caveats."""
    predicted: dict[Point, Config] = field(default_factory=dict)
    """Config of each point that the cost model predicts."""
    at_once: float = 1.0
    """Clients that train at a time for each that a round takes in: ``buffer.concurrency`` over ``buffer.size``."""


def parse_numbers(option: str, text: str) -> list[int]:
    """Parse the numbers of an option such as ``--clients 10,100``: ascending, without duplicates.

    Raises
    ------
    ConfigError
        If a part is not a whole number of 1 or more.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdecimal()) or len(part) > 9 or int(part) < 1:
            shown = repr(part) if part else "an empty place"
            raise ConfigError(
                f"{option} {text}: {shown} is not a whole number from 1 to 999999999; give numbers with commas, "
                f"for example {option} 1,10,100"
            )
    return sorted({int(part) for part in parts})


_PREDICTED = ("clients", "cohort", "actors")


def parse_predicted(texts: Sequence[str]) -> list[dict[str, int]]:
    """Parse the points of ``--predict``, such as ``clients=1000,cohort=100,actors=8``.

    Raises
    ------
    ConfigError
        If a part is not a name with a whole number of 1 or more, or clients are not given.
    """
    points = []
    for text in texts:
        values: dict[str, int] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            if (
                name not in _PREDICTED
                or name in values
                or not (number.isascii() and number.isdecimal() and 0 < int(number) < 10**9)
            ):
                raise ConfigError(
                    f"--predict {text}: {part.strip()!r} is not one of clients=N, cohort=N and actors=N, each once and with a "
                    "whole number of 1 or more; for example --predict clients=1000,cohort=100,actors=8"
                )
            values[name] = int(number)
        if "clients" not in values:
            raise ConfigError(f"--predict {text}: clients=N is missing; for example --predict clients=1000,cohort=100")
        points.append(values)
    return points


def make_points(
    path: str | Path,
    overrides: Sequence[str],
    *,
    clients: Sequence[int],
    cohorts: Sequence[int] | None,
    actors: Sequence[int] | None,
    rounds: int,
    predict: Sequence[Mapping[str, int]] = (),
) -> Points:
    """Return all combinations, each with its config.

    Parameters
    ----------
    path, overrides
        The config file and dotted overrides shared by all points.
    clients, cohorts, actors
        Varied values; None takes the config's.
    rounds
        Rounds per run.
    predict
        Points to predict, from :func:`parse_predicted`; what they leave out is the config's.

    Raises
    ------
    ConfigError
        If no point is left, or an override sets what an option sets.
    PartitionError
        If there are too few data for the clients; the message states how many clients they suffice for.
    ResourceError
        If the actors do not fit this machine.
    """
    from fedsim.configuration.schema import read_config

    _check_overrides(overrides, cohorts is not None, actors is not None)
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: give 1 or more, and at least 3 for figures apart from the first round's")
    base = read_config(path, overrides)
    if base.executor == "local":
        if actors is not None and list(actors) != [1]:
            raise ConfigError("--actors needs executor=ray; with executor=local this process is the only worker")
        actors = [1]
    base_actors: list[int | str] = [base.ray.actors]
    configs: dict[Point, Config] = {}
    notes: list[str] = []

    at_once = 1.0 if base.buffer is None else base.buffer.concurrency / base.buffer.size

    def config_of(point: Point) -> Config:
        varied = [f"{CLIENTS_KEY}={point.clients}", *_cohort(base, point.cohort, at_once), f"rounds={rounds}"]
        if base.executor == "ray":
            varied.append(f"{ACTORS_KEY}={point.actors}")
        return read_config(path, [*overrides, *varied, *_FORCED])

    if base.buffer is not None and cohorts is not None:
        notes.append(
            f"--cohort takes the place of buffer.size={base.buffer.size}; buffer.concurrency stays {at_once:g} times as much"
        )
    for combination in product(clients, cohorts or [base.clients_per_step], actors or base_actors):
        point = Point(*combination)
        if point.cohort > point.clients:
            notes.append(f"left out: {point.cohort:,} clients a round, where there are only {point.clients:,}")
            continue
        if base.buffer is not None and (train := _at_once(point.cohort, at_once)) > point.clients:
            notes.append(f"left out: {train:,} clients that train at a time, where there are only {point.clients:,}")
            continue
        configs[point] = config_of(point)
    if not configs:
        smallest = _at_once(min(cohorts or [base.clients_per_step]), at_once)
        raise ConfigError(
            f"no point is left: every cohort ({smallest} clients a round or more) is larger than --clients "
            f"{','.join(map(str, clients))}; raise --clients or lower --cohort"
        )
    predicted = {point: config_of(point) for point in _predicted(base, predict, at_once)}
    _check_data({**configs, **predicted})
    return Points(configs, tuple(dict.fromkeys([*notes, *_actor_notes(configs)])), predicted, at_once)


def _cohort(base: Config, cohort: int, at_once: float) -> list[str]:
    """Return the overrides that make a round take in so many clients."""
    if base.buffer is None:
        return [f"{COHORT_KEY}={cohort}"]
    return [f"{SIZE_KEY}={cohort}", f"{AT_ONCE_KEY}={_at_once(cohort, at_once)}"]


def _at_once(cohort: int, at_once: float) -> int:
    """Return how many clients train at a time: in buffered rounds in proportion to those that a step takes in."""
    return max(cohort, round(cohort * at_once))


def _predicted(base: Config, predict: Sequence[Mapping[str, int]], at_once: float) -> list[Point]:
    """Return the points to predict, with a number of actors each."""
    points = []
    for values in predict:
        actors = 1 if base.executor == "local" else values.get("actors", base.ray.actors)
        point = Point(values["clients"], values.get("cohort", base.clients_per_step), actors)
        if not isinstance(actors, int):
            raise ConfigError(
                f"--predict clients={point.clients}: the config has ray.actors={actors}, and a prediction is for a number of "
                "actors; add actors=N"
            )
        if base.executor == "local" and values.get("actors", 1) != 1:
            raise ConfigError(
                "--predict: actors needs executor=ray; with executor=local this process is the only worker"
            )
        if point.cohort > point.clients:
            raise ConfigError(f"--predict: {point.cohort:,} clients a round, where there are only {point.clients:,}")
        if (train := _at_once(point.cohort, at_once)) > point.clients:
            raise ConfigError(
                f"--predict: {train:,} clients train at a time for steps of {point.cohort:,}, where there are only "
                f"{point.clients:,}"
            )
        points.append(point)
    return list(dict.fromkeys(points))


def _check_overrides(overrides: Sequence[str], cohorts: bool, actors: bool) -> None:
    taken = {
        CLIENTS_KEY: "--clients",
        "rounds": "--rounds",
        "output": "--output",
        **({COHORT_KEY: "--cohort"} if cohorts else {}),
        **({ACTORS_KEY: "--actors"} if actors else {}),
    }
    for override in overrides:
        key, _, value = (part.strip() for part in override.partition("="))
        if key in taken and (value or key != COHORT_KEY):  # a file's cohort is taken out for buffered rounds
            raise ConfigError(f"override {override!r}: in a study {taken[key]} sets this; leave the override out")


def _check_data(configs: dict[Point, Config]) -> None:
    """Partition the data for every number of clients up front, so that a study does not fail at its last point."""
    from fedsim.data.sources import load_dataset
    from partitions.base import partition

    config = next(iter(configs.values()))
    column = config.partition.column
    train = load_dataset(config.data, config.seed, column).train
    values = train.columns[column] if column is not None else None

    params = config.params.get(config.partition.kind)

    def deal(clients: int) -> None:
        dealt = config.partition.model_copy(update={"clients": clients})
        partition(dealt, train.labels_N, values, config.seed, params)

    for clients in sorted({point.clients for point in configs}, reverse=True):
        try:
            deal(clients)
        except PartitionError as error:
            raise PartitionError(_too_many_clients(clients, deal, error)) from None


def _too_many_clients(clients: int, deal: Any, error: PartitionError) -> str:
    """Describe how many clients the data suffice for, found by bisection."""
    fits, fails = 0, clients
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            deal(middle)
            fits = middle
        except PartitionError:
            fails = middle
    most = f"the largest found to work is --clients {fits}" if fits else "no number of clients works"
    return f"--clients {clients} cannot be partitioned ({error}); {most}"


def _actor_notes(configs: dict[Point, Config]) -> list[str]:
    """Check that the actors fit a local cluster, and return the plans' notes."""
    from fedsim.executors.cluster.sizing import NodeResources, plan_actors

    notes = []
    for point, config in configs.items():
        ray = config.ray
        if config.executor != "ray" or ray.address is not None or (ray.num_gpus_per_actor and ray.num_gpus is None):
            continue  # a cluster's free resources, and the GPUs Ray finds, are known only once it answers
        machine = NodeResources(float(ray.num_cpus or os.cpu_count() or 1), float(ray.num_gpus or 0))
        try:
            plan = plan_actors(ray, config.client.threads, point.clients, [machine])
        except ResourceError as error:
            raise ResourceError(f"the point of {point} does not fit: {error}") from None
        if plan.note:
            notes.append(f"{plan.note}: more actors than CPUs cannot show what more CPUs would")
    return notes
