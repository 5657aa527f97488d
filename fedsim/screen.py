"""What a run shows, and what it does when nobody looks any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from rich.console import Console


class RunConsole(Console):
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
