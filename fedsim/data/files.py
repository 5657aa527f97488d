"""Finds the training and validation file of a task in a folder."""

from __future__ import annotations

from pathlib import Path

from fedsim.core.errors import DataError, listed, nearest, shown
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.examples import Problem, Table
from fedsim.data.rows import READERS, extension, read_table

TRAIN_STEMS = ("train",)
VALIDATION_STEMS = ("validation", "dev", "valid", "val", "test")
"""Names looked for, the first one found is taken; test.* only if its rows have labels."""


def open_files(config: DataConfig, task: TaskConfig) -> tuple[Table, Table]:
    """Return the training and validation rows of the files that ``data.path`` names.

    Raises
    ------
    DataError
        If the folder or one of the two files is not there, is ambiguous, or is of no known format.
    """
    folder = _folder(config, task)
    train = _named(folder, config.train_file, "data.train_file") or _search(folder, TRAIN_STEMS)
    if train is None:
        raise DataError(f"{folder}: no training file train.*; name it in data.train_file; {_listing(folder)}")
    validation = _named(folder, config.validation_file, "data.validation_file") or _search(folder, VALIDATION_STEMS)
    if validation is None:
        raise DataError(
            f"{folder}: no validation file (validation.*, dev.*, valid.*, val.* or a labelled test.*); name it in "
            f"data.validation_file; {_listing(folder)}"
        )
    if not config.validation_file and validation.name.startswith("test.") and not _has_labels(validation, task):
        raise DataError(
            f"{validation}: has no labels (field {shown(task.label_field)}), and the folder has no other validation file; "
            f"name one in data.validation_file"
        )
    return read_table(train), read_table(validation)


def _folder(config: DataConfig, task: TaskConfig) -> Path:
    """Return the folder with the files: ``data.path``, or the folder in it that is named like the task."""
    if config.path is None:
        raise DataError("data.source=files needs data.path, the folder with the files")
    folder = Path(config.path).expanduser()
    if not folder.exists():
        parent = folder.parent
        hint = nearest(folder.name, (path.name for path in parent.iterdir())) if parent.is_dir() else ""
        raise DataError(f"data.path: {folder} does not exist{hint}")
    if not folder.is_dir():
        raise DataError(
            f"data.path: {folder} is a file; give its folder {folder.parent} and name it in data.train_file"
        )
    inner = folder / task.name
    holds_train = config.train_file is not None and (folder / config.train_file).exists()
    if inner.is_dir() and not holds_train and not _candidates(folder, "train"):
        return inner
    return folder


def _named(folder: Path, name: str | None, key: str) -> Path | None:
    if name is None:
        return None
    path = folder / Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{key}: {path} does not exist; {_listing(folder)}")
    return path


def _search(folder: Path, stems: tuple[str, ...]) -> Path | None:
    for stem in stems:
        found = _candidates(folder, stem)
        readable = [path for path in found if extension(path.name)]
        if len(readable) > 1:
            key = "data.train_file" if stem in TRAIN_STEMS else "data.validation_file"
            names = " and ".join(path.name for path in readable)
            raise DataError(f"{folder}: {names} are both there; say which one to read in {key}")
        if found:
            return (readable or found)[0]  # a file of unknown format is refused by its reader, with its name
    return None


def _candidates(folder: Path, stem: str) -> list[Path]:
    """Return the files named ``stem`` with one extension (two where it is compressed)."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(stem + "."))
    return [path for path in paths if extension(path.name) in (None, path.name.lower().removeprefix(stem))]


def _has_labels(path: Path, task: TaskConfig) -> bool:
    """Whether the first readable row has a label; GLUE's test files have none, or -1 throughout."""
    first = next((row for _, row in read_table(path).rows if not isinstance(row, Problem)), {})
    return first.get(task.label_field) not in (None, "", -1, "-1")


def _listing(folder: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return f"the folder holds {listed(names) or 'nothing'} (readable: {', '.join(READERS)})"
