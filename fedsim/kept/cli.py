"""The command ``fedsim cache``: see and clear what runs keep for later ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedsim.kept.store import Entry

app = typer.Typer(
    no_args_is_help=True,
    help="See and clear what runs keep for later ones: tokens, layer scores, evaluations of the start, fuse trials.",
)

Folder = Annotated[
    Path | None,
    typer.Option(
        help="The cache's folder; if not given, the one that configs without cache.folder use.", show_default=False
    ),
]


@app.command("list")
def list_entries(folder: Folder = None) -> dict[str, Any]:
    """List the entries, the last used first, with what they were made from and their size."""
    from fedsim.display.screen import Screen
    from fedsim.kept.command import entries_table, found, place_of

    place = place_of(folder)
    console, entries = Screen(), found(place)
    if entries:
        console.print(entries_table(entries))
    console.print(_total(place, entries), soft_wrap=True, markup=False)
    return _record(place, entries)


@app.command()
def clear(folder: Folder = None) -> dict[str, Any]:
    """Remove all entries; later runs compute them anew."""
    from fedsim.display.screen import Screen
    from fedsim.kept.command import found, place_of, remove

    place = place_of(folder)
    entries = found(place)
    remove(place, entries)
    Screen().print(f"removed {_total(place, entries)}", soft_wrap=True, markup=False)
    return _record(place, entries)


def _record(place: Path, entries: list[Entry]) -> dict[str, Any]:
    listed = [{"kind": e.kind, "about": e.about, "bytes": e.nbytes, "used_at": e.used_at} for e in entries]
    return {"folder": str(place), "bytes": sum(entry.nbytes for entry in entries), "entries": listed}


def _total(place: Path, entries: list[Entry]) -> str:
    from fedsim.display.report import format_bytes

    number = len(entries)
    total = format_bytes(sum(entry.nbytes for entry in entries))
    return f"{number:,} {'entry' if number == 1 else 'entries'}, {total}, in {place}"
