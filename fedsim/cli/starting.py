"""``fedsim presets`` and ``fedsim init``: what a first run starts from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Print this one, to begin a config of your own with.", show_default=False
        ),
    ] = None,
) -> None:
    """List the configs and studies that come with fedsim: ``fedsim run NAME``, ``fedsim compare NAME``; or print one."""
    from fedsim.configuration import presets as shelf
    from fedsim.core.errors import ConfigError, suggestion
    from fedsim.display.screen import Screen
    from fedsim.display.presets_table import presets_table

    known = {preset.name: preset for preset in shelf.presets()}
    if name is None:
        Screen().print(presets_table(list(known.values())))
        return
    if name not in known:
        raise ConfigError(f"there is no preset {name}{suggestion(name, known)}; 'fedsim presets' lists them")
    text = known[name].text
    sys.stdout.write(text)
