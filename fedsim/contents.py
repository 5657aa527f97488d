"""What a folder holds, so that no run is made in a folder that is somebody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from fedsim.core.errors import ConfigError

Held = Literal["nothing", "run", "foreign"]
"""What a folder holds: nothing at all, a run of fedsim, or anything else."""

CREATED = "created"
"""The first event of a run."""
_LONGEST_FIRST_LINE = 2**16


def check_usable(held: Held, place: str, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a folder that cannot be used as asked.

    Parameters
    ----------
    held
        What it holds.
    place
        What to call it.

    Raises
    ------
    ConfigError
        Saying what would be right.
    """
    if resume and overwrite:
        raise ConfigError(f"{place} can be resumed or overwritten, not both; leave one of the two out")
    if held == "foreign":
        raise ConfigError(f"{place} holds files but no run of fedsim; choose a new or empty folder with output=FOLDER")
    if resume and held == "nothing":
        raise ConfigError(
            f"{place} holds no run to resume; leave out --resume or give the run's folder with output=FOLDER"
        )
    if held == "run" and not resume and not overwrite:
        raise ConfigError(
            f"{place} already holds a run; continue it with --resume or choose another folder with output=FOLDER"
        )


def begins_log(line: str | bytes) -> bool:
    """Tell whether a line is the first one of a run's ``metrics.jsonl``."""
    try:
        first = json.loads(line)
    except ValueError:
        return False
    return isinstance(first, dict) and first.get("event") == CREATED and "fedsim" in first


def what_is_in(path: Path) -> Held:
    """Tell an absent or empty folder, a run folder, and anything else apart; changes nothing."""
    try:
        if not path.exists():
            return "nothing"
        if not path.is_dir():
            return "foreign"
        metrics = path / "metrics.jsonl"
        names = {entry.name for entry in path.iterdir()}
        if names <= {metrics.name} and (not names or metrics.stat().st_size == 0):
            return "nothing"
        if metrics.is_file():
            with metrics.open("rb") as file:
                if begins_log(file.readline(_LONGEST_FIRST_LINE)):
                    return "run"
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); choose another folder with output=FOLDER"
        ) from error
    return "foreign"
