"""Output for machines: with ``--json`` standard output holds one JSON document and nothing else.

Every command gets the option, whoever adds it: :func:`give_json` wraps the functions of an app. What a command's function
returns becomes the document's ``result``, in place of all that it prints.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer

OPTION = "--json"
SCHEMA = "fedsim/output/1"
"""Name and version of the document; a change that breaks readers changes the number."""


@dataclass(frozen=True)
class Outcome:
    """What a command found, where it ends with another status than 0."""

    result: Any
    code: int = 0
    sentence: str = ""
    """Why it did not succeed."""


class OutputClosed(Exception):  # noqa: N818 - it is no error
    """Nobody reads standard output any more."""


class _Returned:
    """What the command of this process returned last."""

    outcome: Outcome | None = None


def give_json(app: typer.Typer) -> None:
    """Give every command of an app, and of the apps in it, the option ``--json``."""
    for command in app.registered_commands:
        if command.callback is not None and not hasattr(command.callback, "speaks_json"):
            command.callback = _with_json(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            give_json(group.typer_instance)


def command_names(app: typer.Typer, above: str = "") -> list[str]:
    """Return the names of all commands, those of a group with the group's name before them."""
    names = [above + str(each.name or _named(each.callback)) for each in app.registered_commands]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            names += command_names(group.typer_instance, f"{above}{group.name} ")
    return names


def _named(callback: Callable[..., Any] | None) -> str:
    return getattr(callback, "__name__", "").replace("_", "-")


def _with_json(callback: Callable[..., Any]) -> Callable[..., None]:
    """Return a command's function with the option, and with what it returns kept for the document."""

    @functools.wraps(callback)
    def command(*arguments: Any, as_json: bool = False, **options: Any) -> None:
        try:
            returned = callback(*arguments, **options)
        except BrokenPipeError:  # typer would make it status 1
            raise OutputClosed from None
        outcome = returned if isinstance(returned, Outcome) else Outcome(returned)
        _Returned.outcome = outcome
        if outcome.code:
            raise typer.Exit(outcome.code)

    signature = inspect.signature(callback, eval_str=True)
    help_text = "Print one JSON document (docs/operations.md) and nothing else; progress goes to standard error."
    option = inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(OPTION, help=help_text)],
    )
    parameters = [*signature.parameters.values(), option]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.speaks_json = True  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def is_wanted(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON; it is asked before it is parsed, for mistakes in the line itself."""
    options = words[: words.index("--")] if "--" in words else words
    return OPTION in options


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Keep standard output free within the block: of what is printed, and of what child processes write to it.

    Progress of runs goes to standard error (:class:`fedsim.display.screen.RunConsole`).
    """
    from fedsim.display.screen import Nowhere

    sys.stdout.flush()
    kept = None
    with suppress(OSError, ValueError):  # a standard output that is no file of the system, as in a test
        if sys.stdout.fileno() == 1:
            kept = os.dup(1)
            os.dup2(2, 1)
    try:
        with redirect_stdout(Nowhere()):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def document(command: str | None, code: int, error: dict[str, Any] | None) -> str:
    """Return the JSON document of a command that has ended, with what it returned."""
    from fedsim import __version__
    from fedsim.records.events import plain

    outcome, _Returned.outcome = _Returned.outcome, None
    if code and error is None:
        told = outcome.sentence if outcome is not None else ""
        error = described("Failed", told or f"{command} has ended with status {int(code)}")
    held = {
        "schema": SCHEMA,
        "fedsim": __version__,
        "command": command,
        "exit_code": int(code),
        "result": None if outcome is None else plain(outcome.result),
        "error": error,
    }
    text = json.dumps(held, ensure_ascii=False, allow_nan=False)
    # Names of files may hold bytes that are no text; as in the records they are escaped rather than fatal.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def described(kind: str, sentence: str, **more: Any) -> dict[str, Any]:
    """Return the document's ``error``: its kind, a sentence, and where it is, if that is known."""
    return {"kind": kind, "sentence": sentence, "where": None, "key": None, "kept": None, **more}


def command_of(words: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the command that a line begins with, None if it names none."""
    given = [word for word in words if not word.startswith("-")]
    return next((name for length in (2, 1) if (name := " ".join(given[:length])) in names), None)
