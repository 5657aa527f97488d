"""Open the training and validation files of a task in a folder, in all common layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.core.errors import DataError, listed, shown
from fedsim.data.cards import CardConfig
from fedsim.data.columns import Wanted
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.examples import Problem, Table
from fedsim.data.found import Found, find, wanted_of
from fedsim.data.rows import OpenedFile, open_table
from fedsim.data.splits import (
    is_one_file,
)

_VALIDATION = "data.validation_file"


@dataclass(frozen=True)
class Opened:
    """A dataset's rows, not yet read."""

    train: list[Table]
    validation: list[Table]
    holdout: float | None = None
    """Share of the training examples to hold out if there are no validation rows."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how files were interpreted."""


def open_files(config: DataConfig, task: TaskConfig, column: str | None = None) -> Opened:
    """Return the training and validation rows of the files that ``data.path`` names.

    Parameters
    ----------
    column
        The client column, if any.

    Raises
    ------
    DataError
        If the folder or a file is missing, ambiguous or of unknown format, or a given key would be ignored.
    """
    wanted = wanted_of(config, task, column)
    folder, card, found = find(wanted)
    holdout = found.holdout(config)
    train = _open_all(found.train, found, wanted)
    validation = _open_all(found.validation, found, wanted)
    _check_labelled(validation, wanted, found)
    _check_use(config, [*train, *validation])
    note = _note(folder, card, train, validation, holdout, found, wanted)
    return Opened([each.table for each in train], [each.table for each in validation], holdout, note)


def _open_all(paths: Iterable[Path], found: Found, wanted: Wanted) -> list[OpenedFile]:
    labels = found.labels or {}
    return [open_table(path, wanted, label=labels.get(path), known_tsv=path in found.layout_tsv) for path in paths]


def _check_labelled(validation: Sequence[OpenedFile], wanted: Wanted, found: Found) -> None:
    """Refuse an unlabelled test split used for lack of another; GLUE's have no labels, or -1 throughout."""
    settled = wanted.config.validation_file is not None or found.labels is not None or not wanted.task.labels
    if not validation or settled:
        return
    first = validation[0].path
    if "test" not in (re.split(r"[.-]", first.name.lower())[0], first.parent.name.lower()):
        return
    if not _has_label(first, wanted, found) and _has_label(found.train[0], wanted, found):
        raise DataError(
            f"{first}: has no labels (field {shown(wanted.task.label_field)}), and the folder has no other validation file; "
            f"name one in {_VALIDATION}, or hold out a share of the training examples with data.holdout=0.1"
        )


def _has_label(path: Path, wanted: Wanted, found: Found) -> bool:
    """Whether the first row of a file has a label."""
    table = open_table(path, wanted, known_tsv=path in found.layout_tsv).table
    row = next((row for _, row in table.rows if not isinstance(row, Problem)), {})
    field = wanted.task.label_field
    return row.get(table.columns.get(field, field)) not in (None, "", -1, "-1")


def _check_use(config: DataConfig, files: Sequence[OpenedFile]) -> None:
    """Refuse text-file keys if no file is read that they apply to."""
    names = listed(dict.fromkeys(each.path.name for each in files))
    of_columns = any(each.kind in ("csv", "tsv") for each in files)
    for key in ("header", "delimiter"):
        if getattr(config, key) not in (None, "auto") and not of_columns:
            raise DataError(f"data.{key} is given, but none of {names} is a CSV or TSV file; drop the key")
    if config.encoding is not None and all(each.kind in ("parquet", "arrow") for each in files):
        raise DataError(f"data.encoding is given, but none of {names} is a text file; drop the key")


def _note(
    folder: Path,
    card: CardConfig | None,
    train: Sequence[OpenedFile],
    validation: Sequence[OpenedFile],
    holdout: float | None,
    found: Found,
    wanted: Wanted,
) -> tuple[str, ...]:
    """Describe in one line which files were used, unless they are just train.* and validation.* with the task's columns."""
    how: dict[str, None] = {}
    if card is not None:
        how[f"configuration {card.name}"] = None
    for each in (*train, *validation):
        how.update(dict.fromkeys(each.how))
        columns = [f"{name}={shown(column)}" for name, column in each.table.columns.items() if name != column]
        if columns:
            how[f"columns {', '.join(columns)}"] = None
    if found.labels is not None:
        labelled = dict.fromkeys(f"{path.name}={found.labels[path]}" for path in (*found.train, *found.validation))
        labels = listed(labelled)
        how[f"the file is the class ({labels})"] = None
    if holdout is not None:
        why = "data.holdout" if wanted.config.holdout is not None else "the data have no split; see data.holdout"
        how[f"{100 * holdout:.3g}% of the examples, drawn with the seed, are held out for validation ({why})"] = None
    if set(found.train) & set(found.validation):
        how["the validation examples include training examples"] = None
    plain = len(train) == 1 and len(validation) <= 1
    plain &= all(each.path.parent == folder and is_one_file(each.path.name) for each in (*train, *validation))
    if plain and not how:
        return ()
    names = " and ".join(_names(folder, files) for files in (train, validation) if files)
    return (f"data: {names} in {folder}{'; ' if how else ''}{'; '.join(how)}",)


def _names(folder: Path, files: Sequence[OpenedFile]) -> str:
    first = files[0].path
    name = str(first.relative_to(folder)) if first.is_relative_to(folder) else str(first)
    return name if len(files) == 1 else f"{name} (and {len(files) - 1} more)"
