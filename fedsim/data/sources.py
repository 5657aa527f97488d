"""Load a run's dataset: from the embedded corpus, files, or the Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from fedsim.core.errors import DataError
from fedsim.core.seeds import NO_CLIENT, NO_ROUND, stream
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.examples import Examples, RowCheck, Table, collect
from fedsim.data.files import Opened, open_files
from fedsim.data.found import find_files
from fedsim.data.hub import open_hub
from fedsim.data.tasks import resolve_task

__all__ = ["Dataset", "Examples", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A task with its training and validation examples."""

    task: TaskConfig
    train: Examples
    validation: Examples
    notes: tuple[str, ...] = ()
    """Notes for the user on how files were interpreted."""


def load_dataset(config: DataConfig, seed: int, column: str | None = None) -> Dataset:
    """Read, check and subsample the examples of a run.

    Parameters
    ----------
    config
        The ``data`` section.
    seed
        The run's seed; it alone decides which examples ``train_examples`` and ``validation_examples`` keep.
    column
        Client column (``partition.column``); every training row must have a value in it.

    Raises
    ------
    DataError
        If the task, the source or a row is invalid, or there are fewer examples than requested.
    """
    task = resolve_task(config.task)
    opened = _open(config, task, column)
    kept = tuple(name for name in config.keep_columns if name != column)
    train_check = RowCheck(task, (column,) if column is not None else (), kept, config.on_bad_row)
    train = collect(opened.train, train_check)
    validation = None
    if opened.holdout is not None:
        train, validation = _split_off(train, opened.holdout, seed, "holdout")
    train = _cut(train, config.train_examples, seed, "train_examples")
    notes = opened.notes
    if config.validation_from_train is not None:
        train, validation = _split_off(train, config.validation_from_train, seed, "validation_from_train")
        notes += (
            f"data: {len(validation):,} training examples, drawn with the seed, validate in place of the examples that would "
            f"(data.validation_from_train); {len(train):,} train",
        )
        return Dataset(task, train, validation, notes + _skipped(train))
    if validation is None:
        validation = collect(opened.validation, RowCheck(task, on_bad_row=config.on_bad_row))
    validation = _cut(validation, config.validation_examples, seed, "validation_examples")
    return Dataset(task, train, validation, notes + _skipped(train, validation))


def _skipped(*parts: Examples) -> tuple[str, ...]:
    """Say which rows ``data.on_bad_row=skip`` leaves out, and why."""
    reasons = Counter[str]()
    for part in parts:
        reasons.update(part.skipped_reasons)
    if not reasons:
        return ()
    many, first = reasons.total(), next(part.first_skipped for part in parts if part.skipped)
    counted = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
    rows = "1 row is" if many == 1 else f"{many:,} rows are"
    return (f"data: {rows} left out (data.on_bad_row=skip; {counted}); the first is {first}",)


def find_source(config: DataConfig, column: str | None = None) -> float | None:
    """Find a run's examples without reading them; return the share of those to train on that validates instead, if any.

    A hub is not asked.

    Raises
    ------
    DataError
        If the task, or a folder or file that the config names, does not exist.
    """
    task = resolve_task(config.task)
    source = config.effective_source
    if source == "files":
        return find_files(config, task, column)
    if source == "embedded":
        _refuse_not_embedded(task)
    return config.holdout


def _open(config: DataConfig, task: TaskConfig, column: str | None) -> Opened:
    source = config.effective_source
    if source == "files":
        return open_files(config, task, column)
    if source == "hub":
        return open_hub(config, task, column)
    return _open_embedded(task)


def _open_embedded(task: TaskConfig) -> Opened:
    _refuse_not_embedded(task)
    train, validation = _corpus(task.name)
    return Opened(
        [Table(f"embedded {task.name} train", enumerate(train, start=1))],
        [Table(f"embedded {task.name} validation", enumerate(validation, start=1))],
    )


def _refuse_not_embedded(task: TaskConfig) -> None:
    from fedsim.data.embedded import EMBEDDED_TASKS

    if task.name not in EMBEDDED_TASKS:
        names = ", ".join(EMBEDDED_TASKS)
        raise DataError(
            f"data.task: the embedded corpus has no task {task.name!r} (it has {names}); give data.path for files, or "
            f"data.source=hub"
        )


@cache
def _corpus(task_name: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the rows of an embedded task, made once: runs of one process, as in a study, all read the same ones."""
    from fedsim.data.embedded import generate

    return generate(task_name)


def _split_off(train: Examples, share: float, seed: int, key: str) -> tuple[Examples, Examples]:
    """Split off validation examples, drawn with the seed whatever their class; both parts keep their order."""
    many = int(share * len(train) + 0.5)
    if not 0 < many < len(train):
        raise DataError(
            f"data.{key}: {share:g} of the {len(train)} examples of {train.origin} are {many}; training and validation need "
            f"one or more each"
        )
    order_N = stream(seed, NO_ROUND, NO_CLIENT, _DRAWS[key]).permutation(len(train))
    held = replace(train.take(np.sort(order_N[:many])), columns={}, skipped=0, skipped_reasons={}, first_skipped="")
    return train.take(np.sort(order_N[many:])), replace(held, origin=f"the held-out part of {train.origin}")


_DRAWS = {"holdout": "data_holdout", "validation_from_train": "validation_from_train"}
"""Purpose of the draw of each key that splits off examples."""


def _cut(examples: Examples, size: int | None, seed: int, key: str) -> Examples:
    """Keep ``size`` examples, drawn without replacement, in order; a larger size keeps all of a smaller one's."""
    if size is None:
        return examples
    if size > len(examples):
        raise DataError(f"data.{key}: {size} examples are requested, but {examples.origin} has {len(examples)}")
    order_N = stream(seed, NO_ROUND, NO_CLIENT, key).permutation(len(examples))
    return examples.take(np.sort(order_N[:size]))
