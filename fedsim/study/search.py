"""The search for each arm's settings, with the same budget for every arm, on examples that are never reported."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.configuration.overrides import parse_override
from fedsim.configuration.schema import Config
from fedsim.configuration.values import leaves
from fedsim.core.errors import ConfigError, listed, shown
from fedsim.study.cells import Cell, Study
from fedsim.study.checks import text_metric_of
from fedsim.study.config import SearchConfig

Values = dict[str, Any]
"""Values of dotted keys."""
_SPLIT = "data.validation_from_train"


@dataclass(frozen=True)
class Choice:
    """What the search has chosen for an arm on a data set."""

    dataset: str
    arm: str
    values: Values
    """Values of dotted keys; empty if no combination gave a metric."""
    trials: tuple[tuple[Values, tuple[float, ...]], ...]
    """All combinations, with the last metric of each of the search's seeds; NaN for a run that failed."""

    def record(self) -> dict[str, Any]:
        """Return this as plain JSON."""
        trials = [{"values": values, "metrics": [_number(m) for m in metrics]} for values, metrics in self.trials]
        return {"dataset": self.dataset, "arm": self.arm, "chosen": self.values, "trials": trials}


def combinations(search: SearchConfig, arm: str) -> list[Values]:
    """Return what an arm tries, in the order of the trials.

    With ``search.trials`` they are drawn without replacement; the draw depends on the search's first seed alone.
    """
    keys = search.arms.get(arm, search.keys)
    every = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    if search.trials is None or search.trials >= len(every):
        return every
    return random.Random(search.seeds[0]).sample(every, search.trials)


def check_search(study: Study) -> None:
    """Refuse a search that gives arms different budgets, or whose keys are set elsewhere.

    Raises
    ------
    ConfigError
        Naming the arms or the key, and what would be right.
    """
    search = study.config.search
    if search is None:
        return
    counts = {arm: len(combinations(search, arm)) for arm in study.config.arms}
    if len(set(counts.values())) > 1:
        said = listed(f"{arm} {count}" for arm, count in counts.items())
        least = min(counts.values())
        raise ConfigError(
            f"{study.path}: the search gives arms different budgets, in combinations: {said}; give all the same number, or "
            f"search.trials: {least}"
        )
    if without := [arm for arm in study.config.arms if not all(combinations(search, arm)) or not counts[arm]]:
        raise ConfigError(
            f"{study.path}: the search has no keys for {listed(without)}; give search.keys, such as client.optimizer.lr: [0.01]"
        )
    _check_keys(study, search)


def _check_keys(study: Study, search: SearchConfig) -> None:
    """Refuse keys that are tried in vain: the same value twice, or one that is set elsewhere."""
    own = [(f"search.arms.{arm}", keys) for arm, keys in search.arms.items()]
    for place, keys in [("search.keys", search.keys), *own]:
        for key, values in keys.items():
            if any(value in values[:index] for index, value in enumerate(values)):
                raise ConfigError(f"{study.path}: {place}.{key} has a value twice, in {shown(list(values))}")
    if search.keys and set(search.arms) == set(study.config.arms):
        raise ConfigError(
            f"{study.path}: search.keys has no use, since search.arms has keys for every arm; leave it out"
        )
    tried = {key for arm in study.config.arms for one in combinations(search, arm) for key in _leaves(one)}
    for key, by in ((_SPLIT, "share"), ("rounds", "rounds")):
        if key in tried and getattr(search, by) is not None:
            raise ConfigError(f"{study.path}: the search cannot try {key}, which search.{by} sets; leave it out")
    for override in study.overrides:
        parts, given = parse_override(override, Config)
        set_ = _leaves({".".join(parts): given})
        if any(_within(one, other) for one in set_ for other in tried):
            raise ConfigError(f"the override {shown(override)} sets what the search chooses; leave it out")


def _leaves(values: Values) -> list[str]:
    """Return the dotted keys that values set, those inside groups each."""
    found: list[str] = []
    for key, value in values.items():
        inside = leaves(value, (key,)) if isinstance(value, dict) and value else [((key,), value)]
        found += [".".join(keys) for keys, _ in inside]
    return found


def _within(one: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or inside it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def trials(study: Study) -> list[Cell]:
    """Return the runs of the search: all arms' first combination before the next one."""
    search = study.config.search
    if search is None:
        return []
    # They hold whatever an override says of the runs that are reported; a search without its split would read their examples.
    last: Values = {_SPLIT: search.share}
    if search.rounds is not None:
        last["rounds"] = search.rounds
    most = max(len(combinations(search, arm)) for arm in study.config.arms)
    return [
        study.cell(dataset, arm, seed, combinations(search, arm)[number], number, last)
        for number in range(most)
        for seed in search.seeds
        for dataset in study.config.datasets
        for arm in study.config.arms
    ]


def metric_of(search: SearchConfig, arm: str) -> str:
    """Return the entry of a run's summary by which an arm's settings are chosen, dotted if it is inside another."""
    if (written := text_metric_of(search, arm)) is not None:
        return f"generated.{written}"
    named = search.metric.get(arm, "global") if isinstance(search.metric, dict) else search.metric
    return f"{named}_metric"


def choose(study: Study, metrics: Mapping[Cell, float]) -> list[Choice]:
    """Return the best combination of each arm on each data set by the mean over the search's seeds; ties go to the first.

    A combination with a failed run, or a metric that is not a number, is not chosen; if all are like that, nothing is.

    Parameters
    ----------
    metrics
        The metric that chooses, :func:`metric_of`, of each of the :func:`trials`; missing ones count as failed.
    """
    search = study.config.search
    if search is None:
        return []
    found: dict[tuple[str, str, int], list[float]] = {}
    for cell in trials(study):
        assert cell.trial is not None
        found.setdefault((cell.dataset, cell.arm, cell.trial), []).append(metrics.get(cell, math.nan))
    choices = []
    for dataset, arm in itertools.product(study.config.datasets, study.config.arms):
        tried = combinations(search, arm)
        results = [tuple(found[dataset, arm, number]) for number in range(len(tried))]
        best = max(range(len(tried)), key=lambda number: (_mean(results[number]), -number))
        values = tried[best] if math.isfinite(_mean(results[best])) else {}
        choices.append(Choice(dataset, arm, values, tuple(zip(tried, results, strict=True))))
    return choices


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else -math.inf


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
