"""The list of ``fedsim presets``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedsim.configuration.presets import SCALING, STUDIES, Preset

_COMMANDS = {STUDIES: "fedsim compare NAME", SCALING: "fedsim scale NAME --clients 10,100"}
"""The command that reads the presets of a folder; for all others it is ``fedsim run``."""


def presets_table(presets: Sequence[Preset]) -> Group:
    """Return the names of presets and what each is, below the command that reads them."""
    return Group(*_parts(presets))


def _parts(presets: Sequence[Preset]) -> Iterator[RenderableType]:
    width = max(len(preset.name) for preset in presets)
    for command, some in groupby(presets, _command):
        yield Text(command, style="bold")
        table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
        table.add_column(no_wrap=True, min_width=width)
        table.add_column()
        for preset in some:
            table.add_row(preset.name, Text(preset.headline))
        yield table
        yield Text()
    yield Text("fedsim presets NAME prints one, to begin a config of your own with")


def _command(preset: Preset) -> str:
    return _COMMANDS.get(preset.name.rpartition("/")[0], "fedsim run NAME")
