"""Arguments and options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli import completion

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, or a preset's name (fedsim presets).",
        show_default=False,
        autocompletion=completion.configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Dotted overrides, e.g. client.optimizer.lr=0.01",
        show_default=False,
        autocompletion=completion.overrides,
    ),
]
Load = Annotated[
    list[Path] | None,
    typer.Option(
        "--load", metavar="FILE.py", help="Plug-in to load, a Python file; can be repeated.", show_default=False
    ),
]

NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Compute all anew, and keep nothing: cache.enabled=false, whatever CONFIG says."),
]


def read(path: Path, overrides: list[str] | None, load: list[Path] | None, no_cache: bool = False) -> Config:
    """Load plug-ins, then read a config that may name what they register."""
    from fedsim.configuration.schema import read_config
    from fedsim.core.plugins import load_files
    from fedsim.kept.config import WITHOUT

    load_files(load)
    return read_config(path, [*(overrides or []), *(WITHOUT if no_cache else [])])
