"""Loads the data set of a run: from the embedded corpus, from files, or from the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.core.errors import DataError
from fedsim.core.seeds import NO_CLIENT, NO_ROUND, stream
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.examples import Examples, RowCheck, Table, collect
from fedsim.data.files import open_files
from fedsim.data.hub import open_hub
from fedsim.data.tasks import resolve_task

__all__ = ["Dataset", "Examples", "load_dataset"]

SourceName = Literal["embedded", "files", "hub"]


@dataclass(frozen=True)
class Dataset:
    """A task with its training and validation examples."""

    task: TaskConfig
    train: Examples
    validation: Examples


def load_dataset(config: DataConfig, seed: int, column: str | None = None) -> Dataset:
    """Read, check and cut the examples of a run.

    Parameters
    ----------
    config
        The ``data`` section.
    seed
        The run's seed; which examples ``train_examples`` and ``validation_examples`` keep follows from it alone.
    column
        Column whose values are the clients (``partition.column``); every training row must have a value in it.

    Raises
    ------
    DataError
        If the task, the source, or one of its rows is not valid, or it holds fewer examples than asked for.
    """
    task = resolve_task(config.task)
    train_table, validation_table = _open(config, task)
    kept = tuple(name for name in config.keep_columns if name != column)
    train_check = RowCheck(task, (column,) if column is not None else (), kept, config.on_bad_row)
    train = collect(train_table, train_check)
    validation = collect(validation_table, RowCheck(task, on_bad_row=config.on_bad_row))
    return Dataset(
        task,
        _cut(train, config.train_examples, seed, "train_examples"),
        _cut(validation, config.validation_examples, seed, "validation_examples"),
    )


def source_of(config: DataConfig) -> SourceName:
    """Return the source that ``data.source`` names or, for ``auto``, that the other keys imply.

    Raises
    ------
    DataError
        If a key is given that belongs to another source, and so would be ignored.
    """
    implied: SourceName = "embedded" if config.path is None else "files"
    source = implied if config.source == "auto" else config.source
    owners: dict[str, SourceName] = {
        "path": "files",
        "train_file": "files",
        "validation_file": "files",
        "hub_name": "hub",
        "hub_subset": "hub",
    }
    for key, owner in owners.items():
        if getattr(config, key) is not None and source != owner:
            needs = " and data.path" if owner == "files" and config.path is None else ""
            raise DataError(
                f"data.{key} is given, but the source is {source}; set data.source={owner}{needs}, or drop the key"
            )
    return source


def _open(config: DataConfig, task: TaskConfig) -> tuple[Table, Table]:
    source = source_of(config)
    if source == "files":
        return open_files(config, task)
    if source == "hub":
        return open_hub(config, task)
    return _open_embedded(task)


def _open_embedded(task: TaskConfig) -> tuple[Table, Table]:
    from fedsim.data.embedded import EMBEDDED_TASKS, generate

    if task.name not in EMBEDDED_TASKS:
        names = ", ".join(EMBEDDED_TASKS)
        raise DataError(
            f"data.task: the embedded corpus has no task {task.name!r} (it has {names}); give data.path for files, or "
            f"data.source=hub"
        )
    train, validation = generate(task.name)
    return (
        Table(f"embedded {task.name} train", enumerate(train, start=1)),
        Table(f"embedded {task.name} validation", enumerate(validation, start=1)),
    )


def _cut(examples: Examples, size: int | None, seed: int, key: str) -> Examples:
    """Keep ``size`` examples, drawn without replacement, in their old order; a larger size keeps all of a smaller."""
    if size is None:
        return examples
    if size > len(examples):
        raise DataError(f"data.{key}: {size} examples are asked for, {examples.origin} holds {len(examples)}")
    order_N = stream(seed, NO_ROUND, NO_CLIENT, key).permutation(len(examples))
    return examples.take(np.sort(order_N[:size]))
