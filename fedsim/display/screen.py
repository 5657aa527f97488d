"""What the command line shows, on any terminal, and what a run does when nobody looks any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO, Any

from rich.console import Console


class Screen(Console):
    """A console that shows text as it is: brackets are brackets, and what its encoding lacks is escaped, not an error."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    @property
    def file(self) -> IO[str]:
        """Where the console writes to."""
        return _Escaping(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


class RunConsole(Screen):
    """A console whose reader may go away, as in ``fedsim run CONFIG | head``: the run goes on in silence.

    Rich would end the process, and with it what was not saved yet.
    """

    def on_broken_pipe(self) -> None:
        """Show nothing from now on, and say so once."""
        self.quiet = True
        with suppress(OSError, ValueError):  # no file of the system's: nothing is left in it to be written at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
        with suppress(OSError):
            print(
                "warning: the output was closed; the run goes on, metrics.jsonl in its folder says how far it is",
                file=sys.stderr,
            )


class _Escaping:
    """A text file that escapes the characters which its encoding lacks, as backslash, u and four digits."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except UnicodeEncodeError:  # before anything was written
            encoding = getattr(self._file, "encoding", None) or "utf-8"
            return self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def escape_output() -> None:
    """Have standard output escape what its encoding lacks, as Python has standard error do by itself."""
    with suppress(AttributeError, ValueError):  # something that stands in for it, or a closed one
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def can_show(text: str) -> bool:
    """Whether standard output has all characters of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
