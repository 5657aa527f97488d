"""Predicted round times: wall time by the cost model, with its error on other points, and simulated time by the schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedsim.scaling.cost_model import LEAST_POINTS, CostModel, Measured
from fedsim.scaling.planned import LEARNED, Planned, Plans
from fedsim.scaling.points import Point
from fedsim.scaling.records import Run, mean, usual

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


@dataclass(frozen=True)
class Prediction:
    """The predicted round time of a point."""

    point: Point
    seconds: float
    """Predicted wall time of a round."""
    measured: float | None
    """Usual wall time of its rounds, where it was run; it is not among the points fitted to."""
    simulated: float | None = None
    """Mean simulated time of its rounds, from their schedule; None without a clock, or where it cannot be known."""
    simulated_measured: float | None = None
    """The same from its records, where it was run."""

    @property
    def error(self) -> float | None:
        """Predicted less measured time, as a share of the measured one."""
        return None if self.measured is None else self.seconds / self.measured - 1.0

    def record(self) -> dict[str, Any]:
        """Return the entry of ``scaling.json``."""
        simulated = {"seconds_simulated": self.simulated, "measured_simulated": self.simulated_measured}
        return {
            **asdict(self.point), "seconds": self.seconds, "measured": self.measured, "error": self.error, **simulated
        }  # fmt: skip

    @classmethod
    def of_record(cls, entry: Mapping[str, Any]) -> Prediction:
        """Return what :meth:`record` wrote."""
        point = Point(entry["clients"], entry["cohort"], entry["actors"])
        simulated = entry.get("seconds_simulated"), entry.get("measured_simulated")
        return cls(point, entry["seconds"], entry["measured"], *simulated)


@dataclass(frozen=True)
class Predictions:
    """Predictions of a study."""

    asked: tuple[Prediction, ...] = ()
    """Points that were asked for (``--predict``); none of them is fitted to."""
    left_out: tuple[Prediction, ...] = ()
    """Every other measured point, predicted by a fit to the rest."""
    notes: tuple[str, ...] = ()
    """What is exact in the predictions, what is fitted, and what could not be predicted."""

    def record(self) -> dict[str, Any]:
        """Return the entry of ``scaling.json``."""
        return {
            "asked": [each.record() for each in self.asked],
            "left_out": [each.record() for each in self.left_out],
            "notes": list(self.notes),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Predictions:
        """Return what :meth:`record` wrote."""
        asked, left_out = (tuple(map(Prediction.of_record, record.get(name, ()))) for name in ("asked", "left_out"))
        return cls(asked, left_out, tuple(record.get("notes", ())))


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
    plans = Plans()
    by_point: dict[Point, list[Run]] = {}
    for run in runs:
        by_point.setdefault(run.point, []).append(run)
    fitted = {
        point: _measured(own, plans.of(configs[point], own[0].layers))
        for point, own in by_point.items()
        if point not in asked
    }
    model, layers = CostModel.fit(list(fitted.values())), _Layers(by_point)
    predictions = [
        _asked(point, config, model, plans.of(config, layers.of(point)), by_point.get(point, ()), layers)
        for point, config in asked.items()
    ]
    left_out = []
    for point, own in fitted.items() if len(fitted) > LEAST_POINTS else ():
        others = CostModel.fit([each for other, each in fitted.items() if other != point])
        left_out.append(Prediction(point, others.seconds(own.work), own.seconds))
    known = all(layers.are_known(point, config) for point, config in asked.items())
    notes = _notes(next(iter(asked.values())), len(fitted), known, len(layers.found) == 1) if asked else ()
    return Predictions(tuple(predictions), tuple(left_out), tuple(notes))


class _Layers:
    """The layers that points exchange: what clients compute and send depends on them, and some configs choose them by scores.

    Scores are of all clients, whatever a round takes in, so points with equally many clients exchange the same layers.
    """

    def __init__(self, by_point: Mapping[Point, Sequence[Run]]) -> None:
        self._by_clients = {point.clients: own[0].layers for point, own in by_point.items()}
        self.found = sorted(set(self._by_clients.values()))

    def of(self, point: Point) -> tuple[int, ...]:
        """Return a point's layers, or those that points with other numbers of clients exchange."""
        nearest = min(self._by_clients, key=lambda clients: (abs(clients - point.clients), clients))
        return self._by_clients[nearest]

    def are_known(self, point: Point, config: Config) -> bool:
        """Whether the layers of a point are sure."""
        return point.clients in self._by_clients or not _scored(config)


def _scored(config: Config) -> bool:
    """Whether the clients' examples decide which layers are exchanged."""
    return config.layers.choose == "score" or config.layers.share_rule != "fixed"


def _asked(
    point: Point, config: Config, model: CostModel, plan: Planned, own: Sequence[Run], layers: _Layers
) -> Prediction:
    rounds = later(config.rounds)
    sure = config.world.devices is None or layers.are_known(point, config) or len(layers.found) == 1
    known = config.sampling.kind not in LEARNED and sure
    simulated = plan.seconds_simulated(rounds) if known else None
    seconds = model.seconds(plan.work(rounds, int(point.actors)))
    return Prediction(point, seconds, _usual(own, "wall") if own else None, simulated, _simulated(own))


def _notes(config: Config, fitted: int, known: bool, alike: bool) -> list[str]:
    """Return what is exact and what is fitted.

    Parameters
    ----------
    known
        Whether the layers of all points are known.
    alike
        Whether all measured points exchange the same ones.
    """
    notes = [f"wall times are predicted by costs fitted to {fitted} measured points"]
    sure = "set layers.choose to all, top, bottom, random or fixed, or measure a point with as many clients"
    if not known and not alike:
        notes.append(f"scores choose the layers, and other ones for other numbers of clients: {sure}")
    if config.world.devices is None and not config.sampling.delay.seconds_per_example:
        return notes
    if config.sampling.kind in LEARNED:
        notes.append(
            f"simulated times are not predicted: sampling.kind={config.sampling.kind} draws by losses that training gives, and "
            "the cohorts behind the wall times are drawn as if none were known"
        )
    elif config.world.devices is not None and not known and not alike:
        notes.append("simulated times are predicted only where the layers are known")
    else:
        held = (
            ""
            if known or config.world.devices is None
            else f", if scores choose the layers that they choose for all measured points ({sure})"
        )
        notes.append(f"simulated times are exact: the schedule of the same rounds, without their training{held}")
    return notes


def _measured(runs: Sequence[Run], plan: Planned) -> Measured:
    train = _usual(runs, "train")
    work = plan.work(later(len(runs[0].rounds)), runs[0].workers)
    return Measured(work, train, _usual(runs, "wall") - train)


def _usual(runs: Sequence[Run], name: str) -> float:
    """Return the usual wall time of a round, or of its training."""
    rounds = [run.rounds[number] for run in runs for number in later(len(run.rounds))]
    seconds = [each.wall if name == "wall" else each.times.train for each in rounds]
    return usual(seconds, buffered=runs[0].buffered)


def _simulated(runs: Sequence[Run]) -> float | None:
    """Return the mean simulated time of a round; every run of a point has the same."""
    return mean([runs[0].rounds[number].seconds_simulated for number in later(len(runs[0].rounds))]) if runs else None


def later(number: int) -> Sequence[int]:
    """Return the rounds, counted from 0, that figures are of: without the first, unless it is the only one."""
    return range(min(1, number - 1), number)
