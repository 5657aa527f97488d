"""Read a task from the Hugging Face hub, or any folder that ``datasets.load_dataset`` understands."""

from __future__ import annotations

from typing import Any

from fedsim.core.errors import DataError, listed
from fedsim.data.columns import Wanted
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.examples import NAMES_COLUMNS, NumberedRows, Table
from fedsim.data.files import Opened
from fedsim.data.layouts import HELD_OUT, UNKNOWN
from fedsim.data.tasks import HUB_SOURCES, ClassNumber, HubSource


def open_hub(config: DataConfig, task: TaskConfig, column: str | None = None) -> Opened:
    """Return the training and validation rows of a task's hub dataset.

    Parameters
    ----------
    column
        The client column, if any.

    Raises
    ------
    DataError
        If the task has no known dataset, it cannot be fetched, or it lacks a split or a column.
    """
    wanted = Wanted(task, config, UNKNOWN)
    wanted.check_keys(column)
    source = _source(config, task)
    validation_split = config.validation_split
    usual = validation_split == DataConfig.model_fields["validation_split"].default
    train = _table(source, config.train_split, wanted)
    if not config.reads_validation:
        return Opened([train], [], config.holdout)
    if usual and source.validation_split is None:
        share = f"{100 * HELD_OUT:.3g}% of the examples, drawn with the seed, are held out for validation"
        return Opened(
            [train], [], HELD_OUT, (f"data: {train.origin}; {share} (the data have no split; see data.holdout)",)
        )
    if usual and source.validation_split is not None:
        validation_split = source.validation_split
    return Opened([train], [_table(source, validation_split, wanted)])


def _source(config: DataConfig, task: TaskConfig) -> HubSource:
    """Return the dataset that the config names, or that of a built-in task."""
    builtin = HUB_SOURCES.get(task.name)
    if config.hub_name is None:
        if builtin is None:
            raise DataError(f"data.hub_name is not given, and no hub dataset is known for task {task.name!r}")
        return builtin
    if builtin is not None and (config.hub_name, config.hub_subset) == (builtin.name, builtin.subset):
        return builtin
    return HubSource(config.hub_name, config.hub_subset, {})


def _table(source: HubSource, split: str, wanted: Wanted) -> Table:
    origin = " ".join(part for part in (source.name, source.subset, split) if part)
    dataset = _fetch(source, split, origin)
    names = dataset.column_names
    given = wanted.columns(origin, names, numbered=False, fixed=True) if wanted.config.columns else {}
    columns = {**source.columns, **given}
    lost = [name for name in columns.values() if name not in names]
    if lost:
        raise DataError(
            f"{origin}: no column {lost[0]!r}; columns present: {listed(names)}; data.columns maps column names"
        )
    return Table(origin, _rows(dataset), "row", columns, NAMES_COLUMNS)


def _fetch(source: HubSource, split: str, origin: str) -> Any:
    import datasets

    try:
        dataset = datasets.load_dataset(source.name, source.subset, split=split)
    except Exception as error:  # the library raises a dozen unrelated types, for bad names and lost networks alike
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"data.hub_name: {origin} cannot be loaded from the Hugging Face hub ({type(error).__name__}: {reason})"
        ) from error
    return dataset


def _rows(dataset: Any) -> NumberedRows:
    names = {column: feature.names for column, feature in dataset.features.items() if hasattr(feature, "names")}
    for number, row in enumerate(dataset, start=1):
        for column, labels in names.items():
            row[column] = ClassNumber.of(row[column], labels)
        yield number, row
