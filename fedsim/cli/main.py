"""The command line from its words to its exit status (:mod:`fedsim.core.exit_codes`).

A user's mistake gets one sentence, never a stack trace; a machine that asked with ``--json`` gets it as JSON.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

from fedsim.cli import machine
from fedsim.cli.commands import app
from fedsim.core.errors import FedsimError
from fedsim.core.exit_codes import ExitCode, code_of, of_signal
from fedsim.simulation.interrupt import RunInterrupted


def main() -> None:
    """Run the command line; turn errors into one sentence and an exit status."""
    from fedsim.display.screen import escape_output, let_go_of_output

    escape_output()
    words = sys.argv[1:]
    try:
        code = _for_a_machine(words) if machine.is_wanted(words) else _for_a_person()
        sys.stdout.flush()
    except (BrokenPipeError, machine.OutputClosed):
        code = ExitCode.OUTPUT_CLOSED
        let_go_of_output(sys.stdout)
    sys.exit(int(code))


def _for_a_person() -> int:
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, int) or ended.code is None:
            return ended.code or 0
        raise
    except machine.OutputClosed:
        raise
    except BaseException as error:
        code, sentence, _ = _ended(error)
        _say(error, code, sentence)
        return code
    return 0


def _for_a_machine(words: Sequence[str]) -> int:
    error: dict[str, Any] | None = None
    code = 0
    with machine.nothing_printed():
        try:
            code = int(app(standalone_mode=False) or 0)
            if code == ExitCode.INTERRUPTED:  # by then typer has taken the exception
                error = machine.described("KeyboardInterrupt", "interrupted")
        except SystemExit as ended:  # an option that answers itself, such as --help
            code = ended.code if isinstance(ended.code, int) else 0
        except BaseException as raised:
            code, sentence, error = _ended(raised)
            _say(raised, code, sentence)
    text = machine.document(machine.command_of(words, machine.command_names(app)), code, error)
    print(text, flush=True)
    return code


def _say(error: BaseException, code: int, sentence: str) -> None:
    if code == ExitCode.BUG:
        traceback.print_exception(error)
    else:
        print(sentence if isinstance(error, RunInterrupted) else f"error: {sentence}", file=sys.stderr)


def _ended(error: BaseException) -> tuple[int, str, dict[str, Any]]:
    """Return the exit status of an error, its sentence, and what JSON says of it."""
    kind = type(error).__name__
    if isinstance(error, RunInterrupted):
        told = ": ".join(filter(None, [f"interrupted by {error}", error.kept]))
        return of_signal(error.signal_number), told, machine.described(kind, told, kept=error.kept or None)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted", machine.described(kind, "interrupted")
    if hasattr(error, "format_message"):  # typer's, of a mistake in the command line itself
        sentence = str(error.format_message())
        return ExitCode.MISTAKE, sentence, machine.described("UsageError", sentence)
    sentence = str(error) if isinstance(error, FedsimError) else f"{kind}: {error}"
    where = {name: getattr(error, name, None) for name in ("where", "key")} if isinstance(error, FedsimError) else {}
    return code_of(error), sentence, machine.described(kind, sentence, **where)
