"""The files of a split in a folder: one file, the shards of one, or all in a folder of the split's name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from fedsim.core.errors import DataError, listed
from fedsim.data.rows import READABLE, extension

TRAIN_STEMS = ("train",)
VALIDATION_STEMS = ("validation", "dev", "valid", "val", "test")
"""Names looked for, the first one found is taken; test only if its rows have labels."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_STATE = "state.json"
"""Beside what ``datasets`` saves of one split."""


def find_split(folder: Path, stem: str, key: str) -> list[Path]:
    """Return the files of a split, none if there are none: ``stem.csv``, ``stem-00000-of-00002.csv`` ..., or ``stem/``.

    Parameters
    ----------
    key
        The key that names files of other names.

    Raises
    ------
    DataError
        If it is not certain which, or shards are missing.
    """
    entries = sorted(folder.iterdir())
    found = [path for path in entries if path.is_file() and _is_called(path.name.lower(), stem)]
    readable = [path for path in found if extension(path.name)]
    if len(readable) > 1:
        names = " and ".join(path.name for path in readable)
        raise DataError(f"{folder}: {names} are both there; say which one to read in {key}")
    if readable:
        return readable
    shards = [path for path in entries if path.is_file() and re.match(rf"{stem}{_SHARD.pattern}", path.name.lower())]
    if shards:
        return _all_shards(folder, shards, key)
    inner = next((path for path in entries if path.is_dir() and path.name.lower() == stem), None)
    inside = split_folder(inner, key) if inner is not None else []
    return inside or found  # a file of unknown format is refused by its reader, with its name


def _is_called(name: str, stem: str) -> bool:
    """Whether a file is called ``stem`` with one extension, or two where it is compressed."""
    rest = name.removeprefix(stem)
    return name.startswith(stem + ".") and extension(name) in (None, rest)


def is_one_file(name: str) -> bool:
    """Whether a file is no shard of several."""
    return _SHARD.search(name) is None


def split_folder(folder: Path, key: str) -> list[Path]:
    """Return the files of a split that has a folder of its own; none if none of them is readable.

    Raises
    ------
    DataError
        If they are of several formats, or a file is missing.
    """
    if (folder / _STATE).is_file():
        return _saved(folder)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and extension(path.name)]
    kinds = {extension(path.name) for path in files}
    if len(kinds) > 1:
        names = listed(path.name for path in files)
        raise DataError(f"{folder}: the files {names} are of several formats; say which ones to read in {key}")
    return _all_shards(folder, files, key) if any(_SHARD.search(path.name) for path in files) else files


def is_saved_split(folder: Path) -> bool:
    """Whether a folder holds one split as ``Dataset.save_to_disk`` writes it."""
    return (folder / _STATE).is_file()


def _saved(folder: Path) -> list[Path]:
    """Return the files that ``datasets`` saved of a split, as the file beside them lists them."""
    state = folder / _STATE
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
        inside = [name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{state}: does not list the files of a split as the library datasets does") from None
    if inside != names or not names:
        raise DataError(f"{state}: lists no files of its folder")
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise DataError(f"{folder}: {missing} is not there, which {_STATE} lists")
    return [folder / name for name in names]


def _all_shards(folder: Path, files: Sequence[Path], key: str) -> list[Path]:
    """Refuse shards that are not all those of one split."""
    parts = [(path, match) for path in files if (match := _SHARD.search(path.name)) is not None]
    names = listed(path.name for path in files)
    totals = {int(match[2]) for _, match in parts}
    numbers = [int(match[1]) for _, match in parts]
    if len(parts) < len(files) or len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise DataError(f"{folder}: {names} are not the shards of one split; say which ones to read in {key}")
    (total,) = totals
    missing = sorted(set(range(total)) - set(numbers))
    if missing:
        raise DataError(
            f"{folder}: shard {missing[0]:05d} of {total} is missing, the folder holds {names}; to read these alone, say so in "
            f"{key}, as in {_SHARD.split(files[0].name)[0]}-*"
        )
    return list(files)


def named_files(folder: Path, name: str, key: str) -> list[Path]:
    """Return the files that a key names: a file, all in a folder, or all that a pattern fits.

    Raises
    ------
    DataError
        If there are none.
    """
    path = folder / Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        if found := split_folder(path, key):
            return found
        raise DataError(f"{key}: {path} holds no file that is read; {listing(path)}")
    if any(character in name for character in "*?["):
        if found := matching(folder, name):
            return found
        raise DataError(f"{key}: no file is called {path}; {listing(folder)}")
    raise DataError(f"{key}: {path} does not exist; {listing(folder)}")


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files that a pattern fits, relative to a folder."""
    found = glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob refuses patterns from / on
    return sorted(path for name in found if (path := folder / name).is_file())


def listing(folder: Path) -> str:
    """Return what a folder holds and what could be read there, as half a sentence."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return f"the folder holds {listed(names) or 'nothing'} (readable: {READABLE})"
