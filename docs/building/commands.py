"""The reference of commands, made from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from words import cell, prose

from fedsim.cli import app


def markdown() -> str:
    """Return every command with its usage, what it does, its arguments and its options."""
    return "\n".join(line for name, command in walked() for line in _command(name, command)) + "\n"


def walked() -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name, such as ``fedsim cache list``."""
    yield from _below("fedsim", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for inner, below in sorted(getattr(command, "commands", {}).items()):
        if hasattr(below, "commands"):
            yield from _below(f"{name} {inner}", below)
        elif not below.hidden:
            yield f"{name} {inner}", below


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## `{name}`\n"
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    options = ["[OPTIONS]"] if any(parameter.param_type_name == "option" for parameter in shown) else []
    words = [_word(parameter) for parameter in shown if parameter.param_type_name == "argument"]
    yield f"```text\n{' '.join([name, *options, *words])}\n```\n"
    for paragraph in (command.help or "").split("\n\n"):
        yield f"{prose(paragraph)}\n"
    if shown:
        yield "| | | default |\n|---|---|---|"
        yield from map(_row, shown)
        yield ""


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_word(parameter)}`"
    else:
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        name += "" if parameter.is_flag else f" `{_word(parameter)}`"
    default = f"`{parameter.default}`" if parameter.default not in (None, False, "") else ""
    needed = "needed" if parameter.required else default if getattr(parameter, "show_default", True) else ""
    return f"| {name} | {cell(getattr(parameter, 'help', None))} | {needed} |"


def _word(parameter: Any) -> str:
    """Return what stands for a value in a usage line."""
    return str(parameter.metavar or parameter.name.upper())
