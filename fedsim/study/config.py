"""Schema of a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt, WithJsonSchema

from fedsim.core.errors import shown
from fedsim.core.schema import PathText, Schema
from fedsim.simulation.config import TextMetric
from fedsim.study.devices import DevicesConfig

_MOST_SEEDS = 10_000


def _folder(name: str) -> str:
    """Refuse names that lead out of the study's folder."""
    if not name.strip("."):
        raise ValueError("a name of dots alone would be another folder; give it a letter or a digit")
    return name


Name = Annotated[str, Field(pattern=r"^[\w.+-]+$", max_length=80), AfterValidator(_folder)]
"""Becomes the name of a folder."""
Keys = dict[str, Any]
"""Dotted keys of a config, and their values."""


def _seeds(value: Any) -> Any:
    """Read a number of seeds as 0, 1, 2 ..."""
    if isinstance(value, list | tuple) and not any(isinstance(seed, bool) for seed in value):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_SEEDS:
        return tuple(range(value))
    right = f"must be how many there are, from 1 to {_MOST_SEEDS}, or a list such as [0, 1, 2]"
    raise ValueError(f"{shown(value)} gives no seeds; they {right}")


def _once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{shown(list(seeds))} has a seed twice")
    return seeds


_NUMBER_OR_LIST: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": _MOST_SEEDS},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
    ]
}
Seeds = Annotated[
    tuple[NonNegativeInt, ...],
    BeforeValidator(_seeds),
    Field(min_length=1),
    AfterValidator(_once),
    WithJsonSchema(_NUMBER_OR_LIST),
]

Metric = Literal["global", "personalised", TextMetric]


class SearchConfig(Schema):
    """The search for each arm's settings, on training examples that it does not train on; the same budget for every arm."""

    keys: dict[str, tuple[Any, ...]] = Field(default={})
    """Values of dotted keys to try, ``{client.optimizer.lr: [0.01, 0.04]}``; every arm tries all combinations."""
    arms: dict[Name, dict[str, tuple[Any, ...]]] = Field(default={})
    """The same for single arms, in place of ``keys``."""
    trials: PositiveInt | None = None
    """Combinations that each arm tries, drawn with ``seeds`` from all of them; if not given, all, whose number must then be
    the same for every arm."""
    seeds: Seeds = (1000,)
    """Seeds of the search's runs; a combination is chosen by its mean over them."""
    rounds: PositiveInt | None = None
    """Rounds of a run of the search; if not given, the study's."""
    metric: Metric | dict[Name, Metric] = "global"
    """Last metric that chooses: of the global prompt, of the personalised one, or a text metric of what the global model writes
    at the end (``evaluation.generate``), such as exact_match; or by arm, global if not named."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the training examples that validates; see ``data.validation_from_train``. The validation examples of the
    report are never read."""


class Band(Schema):
    """Where a metric is expected: between two values, both included."""

    at_least: float | None = None
    """Least value of the mean over seeds."""
    at_most: float | None = None
    """Greatest value of the mean over seeds."""

    @property
    def has_end(self) -> bool:
        """Whether something can lie outside."""
        return self.at_least is not None or self.at_most is not None


class ArmBand(Band):
    """Where the figures of an arm are expected: the band of the last global metric, and others."""

    generated: dict[TextMetric, Band] = Field(default={})
    """Bands of text metrics of what the global model writes at the end, ``{exact_match: {at_least: 0.5}}``; see
    ``evaluation.generate``."""


class StudyConfig(Schema):
    """A study: every arm on every data set with every seed."""

    name: Name | None = None
    """Name of the study; if not given, that of its file."""
    base: PathText
    """Config file that all cells start from, relative to the study file."""
    set: Keys = Field(default={})
    """Dotted keys that all cells share."""
    arms: dict[Name, Keys | PathText | None] = Field(min_length=1)
    """What is compared, by name: dotted keys on top of ``base``, or a config file in place of it, relative to the study
    file. The first arm is the reference that the others are compared with, unless ``reference`` names another."""
    reference: Name | None = None
    """The arm that the others are compared with."""
    datasets: dict[Name, Keys | None] = Field(default={"base": None}, min_length=1)
    """What the arms are compared on, by name: dotted keys, usually of ``data`` and ``partition``, applied last."""
    seeds: Seeds = (0,)
    """Seeds of each arm on each data set, or their number (3 means 0, 1 and 2)."""
    arm_seeds: dict[Name, Seeds] = Field(default={})
    """Seeds of single arms, in place of ``seeds``."""
    target: float | dict[Name, float] | None = None
    """Metric to reach, for rounds, bytes and seconds to a target; or by data set."""
    target_metric: TextMetric | dict[Name, TextMetric] | None = None
    """What ``target`` is a value of: if not given the task's metric, or a text metric of what the global model writes in the
    rounds that ``evaluation.generate.every`` names, such as exact_match; or by data set."""
    search: SearchConfig | None = None
    """Choose each arm's settings first."""
    devices: DevicesConfig | None = None
    """Devices and network for the modelled time of runs that simulate none themselves (world.devices)."""
    expect: dict[Name, dict[Name, ArmBand]] = Field(default={})
    """Expected bands of the last global metric, ``{DATASET: {ARM: {at_least: 0.9}}}``, and under ``generated`` of text metrics
    of written responses; ``--check`` compares them."""

    def target_of(self, dataset: str) -> tuple[float | None, TextMetric | None]:
        """Return the target on a data set, if any, and the text metric that it is a value of; None for the task's metric."""
        target = self.target.get(dataset) if isinstance(self.target, dict) else self.target
        metric = self.target_metric
        return target, metric.get(dataset) if isinstance(metric, dict) else metric
