"""What a study file says that no single key can tell to be wrong."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from fedsim.core.errors import ConfigError, listed, shown, suggestion
from fedsim.data.config import DataConfig
from fedsim.study.config import Band, StudyConfig


def check_names(path: Path, config: StudyConfig) -> None:
    """Refuse names of arms and data sets that do not exist, and bands in which nothing can lie.

    Raises
    ------
    ConfigError
        Naming the file, the key, and what would be right.
    """
    arms, datasets = list(config.arms), list(config.datasets)
    given = [("reference", config.reference)] if config.reference else []
    given += [(f"arm_seeds.{arm}", arm) for arm in config.arm_seeds]
    given += [(f"search.arms.{arm}", arm) for arm in (config.search.arms if config.search else {})]
    metric = config.search.metric if config.search else "global"
    given += [(f"search.metric.{arm}", arm) for arm in (metric if isinstance(metric, dict) else {})]
    given += [(f"expect.{name}.{arm}", arm) for name, bands in config.expect.items() for arm in bands]
    _refuse(path, given, arms, "arm")
    given = [(f"expect.{name}", name) for name in config.expect]
    given += [(f"target.{name}", name) for name in (config.target if isinstance(config.target, dict) else {})]
    _refuse(path, given, datasets, "data set")
    _check_bands(path, config)


def refuse_reported_examples(
    path: Path, arm: str, dataset: str, data: DataConfig, held_out: float | None, seeds: Collection[int]
) -> None:
    """Refuse a search whose runs would see examples of the report.

    Parameters
    ----------
    data
        Section of a run that is reported.
    held_out
        Share of the training examples that validates in its report, drawn with its seed.
    seeds
        All seeds of the study, and of its search.

    Raises
    ------
    ConfigError
        Naming the arm, the data set, and what would be right.
    """
    where = f"{path}: arm {arm} on data set {dataset}"
    if data.validation_from_train is not None:
        raise ConfigError(
            f"{where}: the search sets data.validation_from_train, by search.share; leave it out, so that other examples are "
            "reported than the search chooses by"
        )
    if held_out is not None and len(seeds) > 1:
        raise ConfigError(
            f"{where}: each seed reports training examples that it holds out (data.holdout, or data without a split), so the "
            "search would train on some of them; name validation files in data.validation_file, or give seeds and search.seeds "
            "one and the same seed"
        )


def _refuse(path: Path, given: Sequence[tuple[str, str]], known: Sequence[str], what: str) -> None:
    for key, name in given:
        if name not in known:
            there = f"{suggestion(name, known)}; the study's are {listed(known)}"
            raise ConfigError(f"{path}: {key} names the {what} {shown(name)}, which does not exist{there}")


def _check_bands(path: Path, config: StudyConfig) -> None:
    for dataset, bands in config.expect.items():
        if not bands:
            raise ConfigError(
                f"{path}: expect.{dataset} expects nothing; name an arm, such as {next(iter(config.arms))}"
            )
        for arm, band in bands.items():
            key = f"{path}: expect.{dataset}.{arm}"
            _check_band(key, band, optional=bool(band.generated))
            for name, of_texts in band.generated.items():
                _check_band(f"{key}.generated.{name}", of_texts)


def _check_band(key: str, band: Band, optional: bool = False) -> None:
    if not band.has_end and not optional:
        raise ConfigError(f"{key} expects nothing; give at_least, at_most or both")
    if band.at_least is not None and band.at_most is not None and band.at_least > band.at_most:
        raise ConfigError(f"{key}: at_least {band.at_least:g} is more than at_most {band.at_most:g}")
