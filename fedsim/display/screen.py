"""Consoles for any terminal, including one that survives a closed pipe."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import IO, Any

from rich.console import Console

from fedsim.core.exit_codes import ExitCode


class Screen(Console):
    """A console that prints text literally: no markup, and characters missing from its encoding are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    @property
    def file(self) -> IO[str]:
        """The file that the console writes to."""
        return _Escaping(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def on_broken_pipe(self) -> None:
        """End the command, which has nobody to print for."""
        self.quiet = True
        let_go_of_output(self.file)
        raise SystemExit(int(ExitCode.OUTPUT_CLOSED))


class RunConsole(Screen):
    """A console that survives a closed pipe, as in ``fedsim run CONFIG | head``: the run goes on silently.

    Rich would end the process and lose what was not saved yet. Where standard output is kept for JSON, it prints to standard
    error.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"stderr": output_is_kept(), **options})

    def on_broken_pipe(self) -> None:
        """Stop printing, and warn once."""
        self.quiet = True
        let_go_of_output(self.file)
        with suppress(OSError):
            print(
                "warning: the output was closed; the run goes on; metrics.jsonl in its folder shows its progress",
                file=sys.stderr,
            )


class Nowhere(io.TextIOBase):
    """Takes the place of standard output where that is kept for one JSON document: what is printed is in there too."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Drop a text."""
        return len(text)


class _Escaping:
    """A text file that escapes characters missing from its encoding as a backslash, u and four digits."""

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


def output_is_kept() -> bool:
    """Whether standard output is kept for one JSON document, so that progress belongs to standard error."""
    return isinstance(sys.stdout, Nowhere)


def let_go_of_output(file: IO[str]) -> None:
    """Send what is still to be written to a closed output nowhere, so that the interpreter's last flush is quiet."""
    with suppress(OSError, ValueError):  # not a file of the operating system: it holds nothing to be flushed at exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def escape_output() -> None:
    """Make standard output escape what its encoding lacks, as Python does for standard error."""
    with suppress(AttributeError, ValueError):  # a replacement for it, or a closed one
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def can_show(text: str) -> bool:
    """Whether standard output can encode a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
