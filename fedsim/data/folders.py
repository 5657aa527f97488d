"""Find a task's folder: the given one, a subfolder, or a configuration listed in its card."""

from __future__ import annotations

from pathlib import Path

from fedsim.core.errors import DataError, listed, shown, suggestion
from fedsim.data.cards import CardConfig, card_configs
from fedsim.data.columns import Wanted
from fedsim.data.layouts import is_called, plain_name
from fedsim.data.rows import extension
from fedsim.data.splits import is_saved_split, matching

RunLocation = tuple[Path, CardConfig | None]
"""The folder, and the card configuration that assigns its files, if used."""


def find_place(wanted: Wanted) -> RunLocation:
    """Locate the files of a task.

    Raises
    ------
    DataError
        If ``data.path`` is not a folder, or its contents are ambiguous.
    """
    folder = _given(wanted)
    config, task = wanted.config, wanted.task
    if config.subset is not None:
        return _subset(folder, config.subset)
    if config.label_of_file or (config.train_file is not None and (folder / config.train_file).exists()):
        return folder, None
    entries = sorted(folder.iterdir())
    if any(path.is_file() and path.name.lower().startswith("train.") for path in entries):
        return folder, None
    folders = [path for path in entries if path.is_dir()]
    exact = folder / task.name
    if exact in folders:
        return exact, None
    if is_saved_split(folder) or _looks_whole(folder, entries, wanted):
        return folder, None
    called = [path for path in folders if is_called(path.name, task.name, wanted.layout)]
    if len(called) == 1:
        return called[0], None
    if called:
        names = " and ".join(path.name for path in called)
        raise DataError(f"{folder}: {names} are both there for task {task.name}; choose one with data.subset")
    return _listed(folder, wanted)


def _given(wanted: Wanted) -> Path:
    path = wanted.config.path
    if path is None:
        raise DataError("data.source=files needs data.path, the folder with the files")
    folder = Path(path).expanduser()
    if not folder.exists():
        parent = folder.parent
        hint = suggestion(folder.name, (path.name for path in parent.iterdir())) if parent.is_dir() else ""
        raise DataError(f"data.path: {folder} does not exist{hint}")
    if not folder.is_dir():
        raise DataError(
            f"data.path: {folder} is a file; give its folder {folder.parent} and name it in data.train_file"
        )
    return folder


def _looks_whole(folder: Path, entries: list[Path], wanted: Wanted) -> bool:
    """Whether a folder has something named like a training split, so that its subfolders need not be searched."""
    patterns = wanted.layout.train_files
    return (
        any(path.name.lower() == "train" or path.name.lower().startswith("train-") for path in entries)
        or any(path.match(pattern) for path in entries for pattern in (*patterns, *(f"{each}.gz" for each in patterns)))
        or class_files(folder, wanted) is not None
    )


def class_files(folder: Path, wanted: Wanted) -> dict[Path, str] | None:
    """Return the one-class files of the task's layout, with their labels; None if one is missing."""
    for layout in wanted.layout.class_files:
        found = {
            label: [
                path for path in (*matching(folder, name), *matching(folder, name + ".gz")) if not extension(path.name)
            ]
            for name, label in layout.items()
        }
        if all(found.values()):
            return {path: label for label, paths in found.items() for path in paths}
    return None


def _listed(folder: Path, wanted: Wanted) -> RunLocation:
    """Return the card configuration named like the task, or the only one; without a card, the folder."""
    configs = card_configs(folder)
    if not configs:
        return folder, None
    fitting = [config for config in configs if is_called(config.name, wanted.task.name, wanted.layout)]
    chosen = fitting if len(fitting) == 1 else configs
    if len(chosen) > 1:
        raise DataError(
            f"{folder}: holds the configurations {listed(config.name for config in configs)}; choose one with data.subset"
        )
    return _of_card(folder, chosen[0])


def _subset(folder: Path, name: str) -> RunLocation:
    """Return the configuration or subfolder that ``data.subset`` names."""
    configs = card_configs(folder)
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    for alike in (lambda other: other == name, lambda other: plain_name(other) == plain_name(name)):
        if config := next((config for config in configs if alike(config.name)), None):
            return _of_card(folder, config)
        if inner := next((path for path in folders if alike(path.name)), None):
            return inner, None
    names = list(dict.fromkeys([*(config.name for config in configs), *(path.name for path in folders)]))
    raise DataError(
        f"data.subset: {folder} holds no {shown(name)}{suggestion(name, names)}; it holds {listed(names) or 'no folder'}"
    )


def _of_card(folder: Path, config: CardConfig) -> RunLocation:
    return (folder, config) if config.folder is None else (folder / config.folder, None)
