"""The cells of a study: every arm on every data set with every seed, each with its config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedsim.configuration.errors import refused
from fedsim.configuration.given import place_of, read_yaml, set_key
from fedsim.configuration.overrides import parse_override
from fedsim.configuration.presets import STUDIES, located
from fedsim.configuration.schema import Config, build_config
from fedsim.configuration.values import as_override, leaves, plain
from fedsim.core.errors import ConfigError, shown
from fedsim.core.plugins import load_installed
from fedsim.study.checks import check_names, check_written_metrics
from fedsim.study.config import StudyConfig
from partitions.config import PartitionConfig

if TYPE_CHECKING:
    from fedsim.configuration.errors import Key

_OURS = ("seed", "output", "name")
"""Keys that a study sets itself."""


@dataclass(frozen=True)
class Cell:
    """One run of a study, or of its search."""

    dataset: str
    arm: str
    seed: int
    config: Config = field(compare=False, repr=False)
    trial: int | None = None
    """Number of the combination that a run of the search tries; None for a run that is reported."""

    @property
    def folder(self) -> str:
        """Folder of the run, relative to the study's."""
        if self.trial is None:
            return f"cells/{self.dataset}/{self.arm}/seed-{self.seed}"
        return f"search/{self.dataset}/{self.arm}/trial-{self.trial}-seed-{self.seed}"

    def __str__(self) -> str:
        trial = "" if self.trial is None else f", trial {self.trial}"
        return f"{self.dataset}, {self.arm}, seed {self.seed}{trial}"


@dataclass(frozen=True)
class Study:
    """A study file, read and checked.

    Attributes
    ----------
    path
        The file; paths in it are relative to its folder.
    config
        Its contents.
    overrides
        Overrides of all cells, as given on the command line.
    """

    path: Path
    config: StudyConfig
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.config.name or re.sub(r"[^\w.+-]", "_", self.path.stem)

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.config.reference or next(iter(self.config.arms))

    def seeds(self, arm: str) -> tuple[int, ...]:
        """Return the seeds of an arm."""
        return self.config.arm_seeds.get(arm, self.config.seeds)

    def cells(self, chosen: Mapping[tuple[str, str], Mapping[str, Any]] | None = None) -> list[Cell]:
        """Return the cells that are reported: one seed of everything before the next one.

        Parameters
        ----------
        chosen
            Values of dotted keys that a search has chosen, by data set and arm.

        Raises
        ------
        ConfigError
            Naming the arm or data set, the key, and what would be right.
        """
        chosen = chosen or {}
        every = sorted({seed for arm in self.config.arms for seed in self.seeds(arm)})
        return [
            self.cell(dataset, arm, seed, chosen.get((dataset, arm), {}))
            for seed in every
            for dataset in self.config.datasets
            for arm in self.config.arms
            if seed in self.seeds(arm)
        ]

    def cell(
        self,
        dataset: str,
        arm: str,
        seed: int,
        also: Mapping[str, Any],
        trial: int | None = None,
        last: Mapping[str, Any] | None = None,
    ) -> Cell:
        """Return one cell.

        Parameters
        ----------
        also
            Values of dotted keys on top of what the study says.
        last
            The same, on top of the overrides of the command line.
        """
        return Cell(dataset, arm, seed, self._config(dataset, arm, seed, also, last or {}), trial)

    def _config(self, dataset: str, arm: str, seed: int, also: Mapping[str, Any], last: Mapping[str, Any]) -> Config:
        of_arm = self.config.arms[arm]
        path = self.path.parent / (of_arm if isinstance(of_arm, str) else self.config.base)
        if not path.suffix and not path.exists():
            said = "base" if path == self.path.parent / self.config.base else f"arms.{arm}"
            raise ConfigError(
                f"{self.path}, {said}: there is no config file {path}; presets' names are not taken here: give a file, "
                "relative to the study file"
            )
        text, values = read_yaml(path)
        sources: dict[tuple[str, ...], str] = {}
        given: dict[tuple[str, tuple[str, ...]], str] = {}
        for place, key, value in self._changes(dataset, arm, also):
            keys = tuple(key.split("."))
            if key.partition(".")[0] in _OURS:
                raise ConfigError(f"{self.path}, {place}: a study sets {keys[0]} itself; leave it out")
            if isinstance(value, dict) and value and not isinstance(_held(values, keys), dict | NoneType):
                set_key(values, keys, {}, key)  # a task of one's own takes the place of a task's name
            for inner, leaf in leaves(value, keys) if isinstance(value, dict) and value else [(keys, value)]:
                said = as_override(inner, leaf)
                try:
                    set_key(values, inner, leaf, said)
                except ConfigError as error:
                    raise ConfigError(f"{self.path}, {place}: {error}") from None
                if given.setdefault((place, inner), key) != key:
                    raise ConfigError(f"{self.path}, {place}: {'.'.join(inner)} is given twice; leave one out")
                sources[inner] = f"{self.path}, {place}: {said}"
        for override in self.overrides:
            keys, value = parse_override(override, Config)
            if keys[0] in _OURS:
                raise ConfigError(f"the override {shown(override)}: a study sets {keys[0]} itself; leave it out")
            set_key(values, keys, value, override)
            sources[keys] = f"override {shown(override)}"
        for key, value in last.items():
            keys = tuple(key.split("."))
            set_key(values, keys, value, as_override(keys, value))
            sources[keys] = f"{self.path}, search: {as_override(keys, value)}"
        for keys, value in _unless_given(values, self.name).items():
            if keys[1] not in (values.get(keys[0]) or {}):
                set_key(values, keys, value, "")
        values |= {"seed": seed, "name": re.sub(r"[^\w.-]", "_", f"{self.name}-{dataset}-{arm}-{seed}")[:200]}
        return build_config(values, lambda key: _place(path, text, sources, key))

    def _changes(self, dataset: str, arm: str, also: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        """Yield place, dotted key and value of all changes to the base, in the order in which they apply."""
        study, of_arm = self.config, self.config.arms[arm]
        yield from (("set", *item) for item in study.set.items())
        if of_arm and not isinstance(of_arm, str):
            yield from ((f"arms.{arm}", *item) for item in of_arm.items())
        yield from ((f"datasets.{dataset}", *item) for item in (study.datasets[dataset] or {}).items())
        yield from (("search", *item) for item in also.items())


def _held(values: Any, keys: tuple[str, ...]) -> Any:
    """Return what is there for a key; None if nothing is."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and check every cell's config.

    Parameters
    ----------
    path
        The file, or the name of a preset, such as ``quickstart`` for ``studies/quickstart``.
    overrides
        Dotted overrides, ``KEY=VALUE``, that apply to every cell, after all else.

    Raises
    ------
    ConfigError
        Naming the file, the key, and what would be right.
    """
    path = located(path, STUDIES)
    text, values = read_yaml(path)
    load_installed()
    try:
        # As configs are: true is no 1, and "3" no 3.
        config = StudyConfig.model_validate_json(json.dumps(plain(values)), strict=True)
    except ValidationError as error:
        raise refused(error, StudyConfig, lambda key: place_of(path, text, {}, key), values) from None
    except (ValueError, RecursionError) as error:  # such as numbers of more digits than Python writes
        raise ConfigError(f"{path}: a study cannot hold these values: {error}") from None
    study = Study(path, config, tuple(overrides))
    check_names(path, config)
    check_written_metrics(path, config, study.cells())
    return study


def _unless_given(values: Mapping[str, Any], study: str) -> dict[tuple[str, str], Any]:
    """Return the values that cells have in place of a config's defaults.

    Nobody looks at the pictures of a hundred cells, and the report says which clients are better off than without tuning, if
    they hold examples out. Trackers show the cells of a study together.
    """
    tracking = values.get("tracking") or {}
    is_tracked = any(
        tracking.get(key) not in (None, False, []) for key in ("tensorboard", "wandb", "mlflow", "trackers")
    )
    partition = values.get("partition") or {}
    holds_out = partition.get("holdout_fraction", PartitionConfig().holdout_fraction) != 0
    return {
        ("tracking", "plots"): False,
        **({("tracking", "group"): study[:128]} if is_tracked else {}),
        **({("evaluation", "personalised_start"): True} if holds_out else {}),
    }


def _place(path: Path, text: str, sources: Mapping[tuple[str, ...], str], key: Key) -> str:
    """Return where a cell's key was given."""
    words = tuple(str(part) for part in key)
    for length in range(len(words), 0, -1):
        if words[:length] in sources:
            return sources[words[:length]]
    inside = next((said for keys, said in sources.items() if words and keys[: len(words)] == words), None)
    return inside or place_of(path, text, {}, key)
