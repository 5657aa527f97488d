"""Entry point of ``fedsim`` and of ``python -m fedsim``, the command line from a plain clone."""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line; Ctrl-C during its imports, before there is anything to save, ends the process quietly."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where it is ignored, as in a background job
        signal.signal(signal.SIGINT, _end)
    from fedsim import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


def _end(number: int, frame: FrameType | None) -> None:
    # Not an exception: what is raised within an import may come out of it as another error.
    os._exit(128 + number)


if __name__ == "__main__":
    main()
