"""What a study file says that no single key can tell to be wrong."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.configuration.generation_rules import check_reachable, check_written
from fedsim.core.errors import ConfigError, listed, shown, suggestion
from fedsim.data.config import DataConfig
from fedsim.study.config import Band, SearchConfig, StudyConfig

if TYPE_CHECKING:
    from fedsim.study.cells import Cell


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
    of_target = config.target_metric
    given += [(f"target_metric.{name}", name) for name in (of_target if isinstance(of_target, dict) else {})]
    _refuse(path, given, datasets, "data set")
    aimless = [name for name in datasets if config.target_of(name)[0] is None]
    named = [name for name in of_target if name in aimless] if isinstance(of_target, dict) else aimless == datasets
    if of_target is not None and named:
        where = f".{named[0]}" if isinstance(named, list) else ""
        raise ConfigError(
            f"{path}: target_metric{where} says what a target is a value of, and there is none; give target, or leave it out"
        )
    _check_bands(path, config)


def check_written_metrics(path: Path, config: StudyConfig, cells: Sequence[Cell]) -> None:
    """Refuse text metrics to reach, or to search by, where runs do not record them.

    Raises
    ------
    ConfigError
        Naming the arm, the data set, and what would be right.
    """
    for cell in {(cell.dataset, cell.arm): cell for cell in reversed(cells)}.values():
        target, metric = config.target_of(cell.dataset)
        asked: list[tuple[str, str | None, bool]] = [("target_metric", metric, True)] if target is not None else []
        if config.search is not None and (by := text_metric_of(config.search, cell.arm)) is not None:
            asked.append(("search.metric", by, False))
        for key, name, in_rounds in asked:
            try:
                if name is not None:
                    check_written(cell.config.evaluation.generate, name, f"{key}={name}", in_rounds)
                    if in_rounds:
                        check_reachable(target, name, "target")
            except ValueError as error:
                raise ConfigError(f"{path}: arm {cell.arm} on data set {cell.dataset}: {error}") from None


def text_metric_of(search: SearchConfig, arm: str) -> str | None:
    """Return the text metric by which an arm's settings are chosen; None if it is another metric."""
    named = search.metric.get(arm, "global") if isinstance(search.metric, dict) else search.metric
    return None if named in ("global", "personalised") else named


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
