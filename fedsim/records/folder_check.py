"""Folder check: what a folder holds, so that no run is started in an unrelated folder."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from fedsim.core.errors import ConfigError

Held = Literal["nothing", "run", "foreign"]
"""What a folder holds: nothing, a fedsim run, or anything else."""

CREATED, ATTACK, STOPPED = "created", "attack", "stopped"
"""Events that a log may begin with: start of a run, its attackers, its stop."""
LONGEST_START_BYTES = 2**16
"""Bytes of a log that suffice to recognise it."""
_OF_A_START = {"metrics.jsonl", "config.yaml", "ray-logs"}


def check_usable(held: Held, place: str, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a folder that cannot be used as requested.

    Parameters
    ----------
    held
        What the folder holds.
    place
        Its name in messages.

    Raises
    ------
    ConfigError
        With a message on how to fix it.
    """
    if resume and overwrite:
        raise ConfigError(f"{place} can be resumed or overwritten, not both; drop one of the two")
    if held == "foreign":
        raise ConfigError(f"{place} holds files but no fedsim run; choose a new or empty folder with output=FOLDER")
    if resume and held == "nothing":
        raise ConfigError(
            f"{place} holds no run to resume; leave out --resume or give the run's folder with output=FOLDER"
        )
    if held == "run" and not resume and not overwrite:
        raise ConfigError(
            f"{place} already holds a run; continue it with --resume or choose another folder with output=FOLDER"
        )


def begins_log(line: str | bytes) -> bool:
    """Whether a line is the first line of a run's ``metrics.jsonl``."""
    try:
        first = json.loads(line)
    except ValueError:
        return False
    return isinstance(first, dict) and first.get("event") == CREATED and "fedsim" in first


def what_log_says(head: bytes, names: Collection[str]) -> Held:
    """Classify a folder that has a ``metrics.jsonl``.

    Parameters
    ----------
    head
        The first 64 KiB of ``metrics.jsonl``.
    names
        All names in the folder.
    """
    if not head:
        return "nothing" if set(names) == {"metrics.jsonl"} else "foreign"
    lines = head.split(b"\n")
    if not begins_log(lines[0]):
        return "foreign"
    never_began = set(names) <= _OF_A_START and len(head) < LONGEST_START_BYTES and all(map(_of_a_start, lines[:-1]))
    return "nothing" if never_began and not lines[-1] else "run"


def _of_a_start(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("event") in (CREATED, ATTACK, STOPPED)


def what_is_in(path: Path) -> Held:
    """Classify a folder: absent or empty, a run, or anything else; changes nothing.

    A folder with nothing but a refused start counts as empty: nothing in it is worth keeping.
    """
    try:
        if not path.exists():
            return "nothing"
        if not path.is_dir():
            return "foreign"
        metrics = path / "metrics.jsonl"
        names = {entry.name for entry in path.iterdir()}
        if not names:
            return "nothing"
        if metrics.is_file():
            with metrics.open("rb") as file:
                return what_log_says(file.read(LONGEST_START_BYTES), names)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); choose another folder with output=FOLDER"
        ) from error
    return "foreign"
