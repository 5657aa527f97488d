"""Find the files of a split in a folder: one file, its shards, or a subfolder named like the split."""

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
"""Names tried in order; test only if its rows have labels."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_STATE = "state.json"
"""State file that ``datasets`` saves beside one split."""


def find_split(folder: Path, stem: str, key: str) -> list[Path]:
    """Return the files of a split, none if there are none: ``stem.csv``, ``stem-00000-of-00002.csv`` ..., or ``stem/``.

    Parameters
    ----------
    key
        Config key for files with other names.

    Raises
    ------
    DataError
        If the files are ambiguous, or shards are missing.
    """
    entries = sorted(folder.iterdir())
    found = [path for path in entries if path.is_file() and _is_called(path.name.lower(), stem)]
    readable = [path for path in found if extension(path.name)]
    if len(readable) > 1:
        names = " and ".join(path.name for path in readable)
        raise DataError(f"{folder}: {names} both exist; name the one to read in {key}")
    if readable:
        return readable
    shards = [path for path in entries if path.is_file() and re.match(rf"{stem}{_SHARD.pattern}", path.name.lower())]
    if shards:
        return _all_shards(folder, shards, key)
    inner = next((path for path in entries if path.is_dir() and path.name.lower() == stem), None)
    inside = split_folder(inner, key) if inner is not None else []
    return inside or found  # a file of unknown format is refused by name when it is opened


def _is_called(name: str, stem: str) -> bool:
    """Whether a file is named ``stem`` with one extension, or two if it is compressed."""
    rest = name.removeprefix(stem)
    return name.startswith(stem + ".") and extension(name) in (None, rest)


def is_one_file(name: str) -> bool:
    """Whether a file is not one of several shards."""
    return _SHARD.search(name) is None


def split_folder(folder: Path, key: str) -> list[Path]:
    """Return the files of a split with its own folder; none if none is readable.

    Raises
    ------
    DataError
        If formats are mixed, or a file is missing.
    """
    if (folder / _STATE).is_file():
        return _saved(folder)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and extension(path.name)]
    kinds = {extension(path.name) for path in files}
    if len(kinds) > 1:
        names = listed(path.name for path in files)
        raise DataError(f"{folder}: the files {names} have different formats; name the ones to read in {key}")
    return _all_shards(folder, files, key) if any(_SHARD.search(path.name) for path in files) else files


def is_saved_split(folder: Path) -> bool:
    """Whether a folder was written by ``Dataset.save_to_disk``."""
    return (folder / _STATE).is_file()


def _saved(folder: Path) -> list[Path]:
    """Return the files of a saved split, as listed in its state file."""
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
    """Refuse shards that do not form one complete split."""
    parts = [(path, match) for path in files if (match := _SHARD.search(path.name)) is not None]
    names = listed(path.name for path in files)
    totals = {int(match[2]) for _, match in parts}
    numbers = [int(match[1]) for _, match in parts]
    if len(parts) < len(files) or len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise DataError(f"{folder}: {names} are not the shards of one split; name the ones to read in {key}")
    (total,) = totals
    missing = sorted(set(range(total)) - set(numbers))
    if missing:
        raise DataError(
            f"{folder}: shard {missing[0]:05d} of {total} is missing, the folder holds {names}; to read only these, set "
            f"{key}, as in {_SHARD.split(files[0].name)[0]}-*"
        )
    return list(files)


def named_files(folder: Path, name: str, key: str) -> list[Path]:
    """Return the files that a key names: a file, all files in a folder, or all matches of a pattern.

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
        raise DataError(f"{key}: {path} holds no readable file; {listing(path)}")
    if any(character in name for character in "*?["):
        if found := matching(folder, name):
            return found
        raise DataError(f"{key}: no file is called {path}; {listing(folder)}")
    raise DataError(f"{key}: {path} does not exist; {listing(folder)}")


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern, relative to a folder."""
    found = glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob refuses patterns from / on
    return sorted(path for name in found if (path := folder / name).is_file())


def listing(folder: Path) -> str:
    """Describe a folder's contents and the readable formats, as half a sentence."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return f"the folder holds {listed(names) or 'nothing'} (readable: {READABLE})"
