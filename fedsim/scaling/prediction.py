"""Round times predicted by the cost model, and its error on points that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedsim.scaling.cost_model import LEAST_POINTS, CostModel, Measured, work_of
from fedsim.scaling.points import Point
from fedsim.scaling.records import Run, median

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config
    from fedsim.simulation.round import Draw


@dataclass(frozen=True)
class Prediction:
    """The predicted round time of a point."""

    point: Point
    seconds: float
    """Predicted wall time of a round."""
    measured: float | None
    """Median wall time of its rounds, where it was run; it is not among the points fitted to."""

    @property
    def error(self) -> float | None:
        """Predicted less measured time, as a share of the measured one."""
        return None if self.measured is None else self.seconds / self.measured - 1.0

    def record(self) -> dict[str, Any]:
        """Return the entry of ``scaling.json``."""
        return {**asdict(self.point), "seconds": self.seconds, "measured": self.measured, "error": self.error}

    @classmethod
    def of_record(cls, entry: Mapping[str, Any]) -> Prediction:
        """Return what :meth:`record` wrote."""
        return cls(Point(entry["clients"], entry["cohort"], entry["actors"]), entry["seconds"], entry["measured"])


@dataclass(frozen=True)
class Predictions:
    """Predictions of a study."""

    asked: tuple[Prediction, ...] = ()
    """Points that were asked for (``--predict``); none of them is fitted to."""
    left_out: tuple[Prediction, ...] = ()
    """Every other measured point, predicted by a fit to the rest."""

    def record(self) -> dict[str, Any]:
        """Return the entry of ``scaling.json``."""
        return {
            "asked": [each.record() for each in self.asked],
            "left_out": [each.record() for each in self.left_out],
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Predictions:
        """Return what :meth:`record` wrote."""
        return cls(*(tuple(map(Prediction.of_record, record.get(name, ()))) for name in ("asked", "left_out")))


def predict(runs: Sequence[Run], configs: Mapping[Point, Config], asked: Mapping[Point, Config]) -> Predictions:
    """Fit the cost model to measured points and predict others.

    Parameters
    ----------
    runs
        Finished runs.
    configs
        The config of each point that has one.
    asked
        Points to predict, with a number of actors each, and their configs. Their own runs are for comparison.

    Raises
    ------
    ConfigError
        If fewer points were measured than the model has costs.
    """
    draws = Draws()
    by_point: dict[Point, list[Run]] = {}
    for run in runs:
        by_point.setdefault(run.point, []).append(run)
    seconds = {
        point: median([_wall(run, number) for run in own for number in _later(run)]) for point, own in by_point.items()
    }
    fitted = {point: _measured(own, draws.of(configs[point])) for point, own in by_point.items() if point not in asked}
    model = CostModel.fit(list(fitted.values()))
    predictions = [
        Prediction(
            point,
            model.seconds(work_of(draws.of(config), _rounds(config.rounds), int(point.actors))),
            seconds.get(point),
        )
        for point, config in asked.items()
    ]
    left_out = []
    for point, own in fitted.items() if len(fitted) > LEAST_POINTS else ():
        others = CostModel.fit([each for other, each in fitted.items() if other != point])
        left_out.append(Prediction(point, others.seconds(own.work), own.seconds))
    return Predictions(tuple(predictions), tuple(left_out))


class Draws:
    """Cohorts of configs; the data are dealt once for every partition."""

    def __init__(self) -> None:
        self._sizes: dict[str, Any] = {}

    def of(self, config: Config) -> Draw:
        """Return the draws of a config."""
        from fedsim.data.sources import load_dataset
        from fedsim.simulation.round import Draw
        from partitions.base import partition

        key = f"{config.seed} {config.partition!r} {config.data!r}"
        if key not in self._sizes:
            column = config.partition.column
            train = load_dataset(config.data, config.seed, column).train
            values = train.columns[column] if column is not None else None
            params = config.params.get(config.partition.kind)
            self._sizes[key] = partition(config.partition, train.labels_N, values, config.seed, params).train_sizes
        return Draw.of(config, self._sizes[key])


def _measured(runs: Sequence[Run], draw: Draw) -> Measured:
    rounds = [(run, number) for run in runs for number in _later(run)]
    train = median([run.rounds[number].times.train for run, number in rounds])
    return Measured(
        work_of(draw, sorted({number for _, number in rounds}), runs[0].workers),
        train,
        median([_wall(run, number) for run, number in rounds]) - train,
    )


def _later(run: Run) -> Sequence[int]:
    """Return the rounds, counted from 0, that figures are of: without the first, unless it is the only one."""
    return _rounds(len(run.rounds))


def _rounds(number: int) -> Sequence[int]:
    return range(min(1, number - 1), number)


def _wall(run: Run, number: int) -> float:
    each = run.rounds[number]
    return each.parts.total / each.times.actors
