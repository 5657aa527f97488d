"""Which files in a folder are a task's training and validation files; nothing is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedsim.core.errors import DataError, listed, shown
from fedsim.data.cards import CardConfig
from fedsim.data.columns import Wanted
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.folders import class_files, find_place
from fedsim.data.layouts import HELD_OUT, LAYOUTS, UNKNOWN
from fedsim.data.rows import extension
from fedsim.data.splits import (
    TRAIN_STEMS,
    VALIDATION_STEMS,
    find_split,
    is_saved_split,
    listing,
    matching,
    named_files,
    split_folder,
)
from fedsim.data.tasks import LabelIndex

_TRAIN, _VALIDATION = "data.train_file", "data.validation_file"


@dataclass(frozen=True)
class Found:
    """Files of each split, with their labels if file names determine them."""

    train: Sequence[Path]
    validation: Sequence[Path]
    labels: Mapping[Path, str] | None = None
    layout_tsv: frozenset[Path] = frozenset()
    """Files known from a layout to be TSV, whatever their extension."""
    whole: bool = False
    """Whether a layout says that the data come without a validation split."""

    def holdout(self, config: DataConfig) -> float | None:
        """Return the share of the training examples that validates: the config's, or that of data without a split."""
        return HELD_OUT if config.holdout is None and self.whole and not self.validation else config.holdout


def find_files(config: DataConfig, task: TaskConfig, column: str | None = None) -> float | None:
    """Find a run's files; return the share of the training examples that will be held out to validate, if any.

    Raises
    ------
    DataError
        If the folder or a file is missing or ambiguous.
    """
    return find(wanted_of(config, task, column))[2].holdout(config)


def wanted_of(config: DataConfig, task: TaskConfig, column: str | None) -> Wanted:
    """Return what a run wants of its files, with keys that would be ignored refused."""
    wanted = Wanted(task, config, UNKNOWN if isinstance(config.task, TaskConfig) else LAYOUTS.get(task.name, UNKNOWN))
    wanted.check_keys(column)
    return wanted


def find(wanted: Wanted) -> tuple[Path, CardConfig | None, Found]:
    """Return the folder of the files, the configuration of its card if that lists them, and the files of each split.

    Raises
    ------
    DataError
        If the folder or a file is missing or ambiguous.
    """
    config = wanted.config
    try:
        folder, card = find_place(wanted)
        found = _find(folder, card, wanted)
    except OSError as error:
        raise DataError(f"data.path: {error.filename or config.path} cannot be read: {error.strerror}") from error
    if not config.reads_validation:
        found = replace(found, validation=())
    if config.holdout is None and config.reads_validation and not (found.validation or found.whole):
        where = "name its files in data.label_of_file" if config.label_of_file else f"name it in {_VALIDATION}"
        raise DataError(
            f"{folder}: no validation file (validation.*, dev.*, valid.*, val.* or a labelled test.*); {where}, or hold "
            f"out a share of the training examples with data.holdout=0.1; {listing(folder)}"
        )
    both = next((path for path in found.train if path in found.validation), None)
    if both is not None and config.validation_file is None:
        raise DataError(
            f"{both}: would be used for both training and validation; name another file in {_VALIDATION}, or hold out "
            f"a share of the training examples with data.holdout=0.1"
        )
    return folder, card, found


def _find(folder: Path, card: CardConfig | None, wanted: Wanted) -> Found:
    config = wanted.config
    if config.label_of_file:
        return _find_labelled(folder, _labels_of_files(folder, wanted), config)
    named = {
        key: named_files(_home(folder, config.subset, name), name, key)
        for key, name in ((_TRAIN, config.train_file), (_VALIDATION, config.validation_file))
        if name is not None and (key == _TRAIN or config.reads_validation)
    }
    if card is not None:
        return _find_listed(folder, card, named, config.reads_validation)
    for base in (folder, folder / "data"):
        if not base.is_dir():
            continue
        tsv: list[Path] = []
        train = named.get(_TRAIN) or _search(base, TRAIN_STEMS, wanted.layout.train_files, _TRAIN, tsv)
        if not train and is_saved_split(base):
            train = split_folder(base, _TRAIN)
        if train:
            validation = named.get(_VALIDATION, [])
            if config.reads_validation and not validation:
                validation = _search(base, VALIDATION_STEMS, wanted.layout.validation_files, _VALIDATION, tsv)
            return Found(train, validation, None, frozenset(tsv), whole=wanted.layout.whole and not validation)
        if (files := class_files(base, wanted)) is not None:
            return _find_labelled(base, files, config, whole=True)
    hint = ""
    if any(path.is_dir() for path in folder.iterdir()):
        hint = ", or choose a folder with data.subset"
    elif any(path.is_file() and extension(path.name) is None for path in folder.iterdir()):
        hint = ", or give data.label_of_file where the file is the class"
    raise DataError(f"{folder}: no training file train.*; name it in {_TRAIN}{hint}; {listing(folder)}")


def _home(folder: Path, subset: str | None, name: str) -> Path:
    """Return the folder that file names are relative to, also if a card chose the subset."""
    inner = folder / subset if subset is not None else folder
    known = (folder / name).exists() or bool(matching(folder, name))
    return inner if inner.is_dir() and not known else folder


def _search(base: Path, stems: Sequence[str], patterns: Sequence[str], key: str, tsv: list[Path]) -> list[Path]:
    """Return the files of a split, by its usual names or those of a layout."""
    for stem in stems:
        if found := find_split(base, stem, key):
            return found
    for pattern in patterns:
        if found := [*matching(base, pattern), *matching(base, pattern + ".gz")]:
            tsv += [path for path in found if extension(path.name) is None]
            return found
    return []


def _find_listed(folder: Path, card: CardConfig, named: Mapping[str, list[Path]], validation: bool) -> Found:
    """Return the files that a card lists, unless a key names others; those for validation only if they are wanted."""
    split = next((stem for stem in VALIDATION_STEMS if stem in card.patterns), "")
    train = named.get(_TRAIN) or card.files(folder, TRAIN_STEMS[0])
    if not train:
        raise DataError(
            f"{folder}: the card lists the splits {listed(card.patterns)} of {shown(card.name)}, and no {TRAIN_STEMS[0]}; name "
            f"a file in {_TRAIN}"
        )
    return Found(train, named.get(_VALIDATION) or (card.files(folder, split) if validation else []))


def _labels_of_files(folder: Path, wanted: Wanted) -> dict[Path, str]:
    """Return the label of each file that ``data.label_of_file`` names."""
    labels, known = LabelIndex(wanted.task), listed(map(repr, wanted.task.labels))
    found: dict[Path, str] = {}
    for pattern, label in wanted.config.label_of_file.items():
        if label not in labels:
            raise DataError(
                f"data.label_of_file: {shown(pattern)} has the unknown label {shown(label)}; labels of task "
                f"{wanted.task.name} are {known}"
            )
        if pattern.startswith(("/", "~")) or ".." in Path(pattern).parts:
            raise DataError(f"data.label_of_file: {shown(pattern)} leads out of {folder}; give names of files in it")
        files = matching(folder, pattern)
        if not files and "/" not in pattern:
            files = matching(folder, f"**/{pattern}")  # a bare name matches files in any folder
        if not files:
            raise DataError(f"data.label_of_file: no file is called {shown(pattern)}; {listing(folder)}")
        twice = next((path for path in files if path in found), None)
        if twice is not None:
            raise DataError(f"data.label_of_file: two of its names are those of {twice}")
        found.update(dict.fromkeys(files, label))
    # By class and name, so that the order of the examples does not depend on the order of the keys.
    return dict(sorted(found.items(), key=lambda item: (labels[item[1]], item[0])))


def _find_labelled(folder: Path, files: Mapping[Path, str], config: DataConfig, whole: bool = False) -> Found:
    """Assign one-class files to splits: by the keys, else by words such as train and test in their names."""
    splits: dict[str | None, list[Path]] = {}
    words = (*TRAIN_STEMS, *VALIDATION_STEMS)
    for path in files:
        of_name = re.findall(r"[a-z]+", str(path.relative_to(folder)).lower())
        splits.setdefault(next((word for word in words if word in of_name), None), []).append(path)
    marked, unmarked = [word for word in words if word in splits], splits.get(None, [])
    keys = [(_TRAIN, config.train_file), (_VALIDATION, config.validation_file)]
    train, validation = (None if name is None else named_files(folder, name, key) for key, name in keys)
    stray = next((path for path in (*(train or ()), *(validation or ())) if path not in files), None)
    if stray is not None:
        raise DataError(f"data.label_of_file: has no label for {stray}; add its name")
    if train is None and TRAIN_STEMS[0] in marked and unmarked and validation is None:
        raise DataError(
            f"{folder}: whether {unmarked[0].name} is for training is unclear beside {splits[TRAIN_STEMS[0]][0].name}; name "
            f"the training files in {_TRAIN}, as a pattern"
        )
    if validation is None:
        held = next((word for word in VALIDATION_STEMS if word in marked), None)
        validation = [path for path in splits.get(held, ()) if path not in (train or ())] if held else []
    if train is None:
        candidates = splits.get(TRAIN_STEMS[0]) or unmarked
        train = [path for path in candidates if path not in validation]
    if not train:
        raise DataError(
            f"{folder}: none of {listed(path.name for path in files)} is for training; name them in {_TRAIN}"
        )
    return Found(train, validation, files, whole=whole and not validation)
