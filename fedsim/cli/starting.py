"""``fedsim presets`` and ``fedsim init``: what a first run starts from."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Print this one, to begin a config of your own with.", show_default=False
        ),
    ] = None,
) -> dict[str, Any]:
    """List the configs and studies that come with fedsim, for fedsim run NAME and fedsim compare NAME; or print one."""
    from fedsim.configuration import presets as shelf
    from fedsim.core.errors import ConfigError, suggestion
    from fedsim.display.presets_table import presets_table
    from fedsim.display.screen import Screen

    known = {preset.name: preset for preset in shelf.presets()}
    if name is not None and name not in known:
        raise ConfigError(f"there is no preset {name}{suggestion(name, known)}; 'fedsim presets' lists them")
    if name is None:
        Screen().print(presets_table(list(known.values())))
    else:
        sys.stdout.write(known[name].text)
    listed = known.values() if name is None else (known[name],)
    return {
        "presets": [{"name": preset.name, "headline": preset.headline, "path": str(preset.path)} for preset in listed]
    }


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[FILE|FOLDER]",
            help="Your data, whose config is written here; or, with --data or without data, the folder where it goes.",
            show_default=False,
        ),
    ] = Path(),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your data, one row an example: CSV, TSV, JSON Lines, Parquet, Arrow; without it the quickstart is copied.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column with the text; twice for a pair of texts.", show_default=False),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the label.", show_default=False)
    ] = None,
    response: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column with a text that the model learns to write behind that of --text.",
            show_default=False,
        ),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column whose values are the clients; none: deal the rows out.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Folder of a Hugging Face model, its name on the hub, or package:NAME.")
    ] = "embedded",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a config that is there.")] = False,
) -> dict[str, Any]:
    """Write a config for your own data, by looking at them; says what it guessed, and asks nothing."""
    from fedsim.core.errors import ConfigError
    from fedsim.data.guessing import command
    from fedsim.display.guess_table import guess_table
    from fedsim.display.next_steps import after_init
    from fedsim.display.screen import Screen

    screen, said = Screen(), dict[str, Any]()
    if data is None and command.names_data(folder):
        data, folder = folder, Path()  # as in: fedsim init reviews.csv
    command.check_folder(folder)
    if data is None:
        if text or label or response or client or model != "embedded":
            raise ConfigError(
                "--text, --label, --response, --client and --model are about your own data; name these, too: fedsim init FILE"
            )
        path = folder / "quickstart.yaml"
        _copy_quickstart(path, force)
    else:
        path = folder / f"{command.config_name(data)}.yaml"
        command.refuse_existing(path, force)
        wishes = command.Wishes(data, tuple(text or ()), label, client, model, response)
        guess, notes = command.guess_config(wishes)
        typed = shlex.join(["fedsim", *sys.argv[1:]])
        try:
            guess = command.as_read(guess)
        finally:
            screen.print(guess_table(guess))  # also of data that a run refuses: what was taken for what
        said = guess.record() | {"notes": list(notes)}
        for note in notes:
            screen.print(f"note: {note}", markup=False, soft_wrap=True)
        command.write(path, command.checked_text(guess, typed, str(path)), force)
    screen.print(f"wrote {path}", markup=False, soft_wrap=True)
    screen.print(after_init(str(path)), soft_wrap=True)
    return {"config": str(path), **said}


def _copy_quickstart(path: Path, force: bool) -> None:
    from fedsim.configuration.presets import located
    from fedsim.data.guessing.command import write

    write(path, located("quickstart").read_text(encoding="utf-8"), force)
