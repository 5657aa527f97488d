"""What ``fedsim cache`` does with a folder."""

from __future__ import annotations

import time
from pathlib import Path

from rich import box
from rich.table import Table

from fedsim.core.errors import ConfigError, ResourceError
from fedsim.display.report import format_bytes
from fedsim.kept.config import OFF, VARIABLE, folder_of
from fedsim.kept.store import KINDS, Entry, entries, leftovers


def place_of(folder: Path | None) -> Path:
    """Return the folder to look at.

    Raises
    ------
    ConfigError
        If none is given and the environment has none.
    """
    place = folder_of(folder)
    if place is None:
        raise ConfigError(
            f"there is no cache: {VARIABLE} is {OFF}, or there is no home folder; give its folder with --folder"
        )
    return place


def found(place: Path) -> list[Entry]:
    """Return the entries, the last used first.

    Raises
    ------
    ResourceError
        If the folder cannot be read.
    """
    try:
        return sorted(entries(place), key=lambda entry: -entry.used_at)
    except OSError as error:
        raise ResourceError(f"the cache {place} cannot be read: {error.strerror}") from error


def remove(place: Path, some: list[Entry]) -> None:
    """Remove entries, and what writers that are gone have left.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    try:
        for path in (*(entry.path for entry in some), *leftovers(place)):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"the cache {place} cannot be cleared: {error.strerror}") from error


def entries_table(some: list[Entry]) -> Table:
    """Return entries as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kept")
    table.add_column("made from")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", justify="right", no_wrap=True)
    for entry in some:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
        table.add_row(KINDS[entry.kind], entry.about, format_bytes(entry.nbytes), used)
    return table
