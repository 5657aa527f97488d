"""The configurations that a hub dataset's card (README.md) lists, and the files of their splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedsim.configuration.yaml_text import MOST_CHARACTERS, load
from fedsim.core.errors import DataError, shown
from fedsim.data.splits import TRAIN_STEMS, matching

CARD = "README.md"
_FENCE = "---"


@dataclass(frozen=True)
class CardConfig:
    """One configuration of a dataset."""

    name: str
    patterns: Mapping[str, tuple[str, ...]]
    """Patterns of the files of each split, relative to the folder of the card."""
    folder: str | None = None
    """Folder with the files of its splits, if the card lists no patterns."""

    def files(self, folder: Path, split: str) -> list[Path]:
        """Return the files of a split.

        Raises
        ------
        DataError
            If a pattern leads out of the folder, or matches no file.
        """
        found: dict[Path, None] = {}
        for pattern in self.patterns.get(split, ()):
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                raise DataError(
                    f"{folder / CARD}: the files {shown(pattern)} of {shown(self.name)} lie outside its folder"
                )
            fitting = matching(folder, pattern)
            if not fitting:
                raise DataError(f"{folder / CARD}: no file is called {shown(pattern)}, which {shown(self.name)} lists")
            found.update(dict.fromkeys(fitting))
        return list(found)


def card_configs(folder: Path) -> list[CardConfig]:
    """Return the configurations that a folder's card lists with files; none if there is no card, or it lists none.

    Raises
    ------
    DataError
        If the card's header is malformed.
    """
    path = folder / CARD
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(2 * MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        return []
    lines = text.split("\n")
    if not lines or lines[0].strip() != _FENCE or _FENCE not in (rest := [line.strip() for line in lines[1:]]):
        return []
    try:
        head = load("\n".join(lines[1 : 1 + rest.index(_FENCE)]))
    except yaml.MarkedYAMLError as error:
        raise DataError(f"{path}: its header between the lines {_FENCE} is not valid YAML: {error.problem}") from None
    entries = head.get("configs") if isinstance(head, dict) else None
    if not isinstance(entries, list):
        return []
    return [_config(path, entry) for entry in entries]


def _config(path: Path, entry: Any) -> CardConfig:
    if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
        raise DataError(f"{path}: its configs must be a list of groups with config_name and data_files")
    name, files = entry["config_name"], entry.get("data_files")
    if files is None:
        inside = entry.get("data_dir")
        if not isinstance(inside, str) or Path(inside).is_absolute() or ".." in Path(inside).parts:
            raise DataError(f"{path}: config {shown(name)} must locate its files with data_files or data_dir")
        return CardConfig(name, {}, inside)
    splits: dict[str, tuple[str, ...]] = {}
    if isinstance(files, list) and files and all(isinstance(part, dict) for part in files):
        for part in files:
            split, patterns = part.get("split"), _texts(part.get("path"))
            if not isinstance(split, str) or patterns is None:
                raise DataError(f"{path}: data_files of {shown(name)} must name a split and a path each")
            splits[split] = (*splits.get(split, ()), *patterns)
        return CardConfig(name, splits)
    patterns = _texts(files)
    if patterns is None:
        raise DataError(f"{path}: data_files of {shown(name)} must be a path, a list of them, or a list of splits")
    return CardConfig(name, {TRAIN_STEMS[0]: patterns})


def _texts(value: Any) -> tuple[str, ...] | None:
    values = value if isinstance(value, list) else [value]
    return tuple(values) if values and all(isinstance(text, str) and text for text in values) else None
