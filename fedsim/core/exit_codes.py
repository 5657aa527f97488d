"""What the exit status of a command means: one table, printed in docs/operations.md."""

from __future__ import annotations

from enum import IntEnum

from fedsim.core.errors import ClientError, FedsimError, ResourceError


class ExitCode(IntEnum):
    """Exit statuses of ``fedsim``; a command that a signal ended has 128 and the signal's number."""

    DONE = 0
    """Done. Early stops by a config's rules are done too."""
    FAILED = 1
    """The work was begun and failed: a client's training, a run of a study, a check (doctor, compare --check, watch)."""
    MISTAKE = 2
    """The command, config, data or model cannot be used as given; the message names what to change."""
    RESOURCES = 3
    """The machine, cluster, disk or network cannot do it now: the same command may succeed later or elsewhere."""
    BUG = 70
    """An error in fedsim, with its traceback."""
    INTERRUPTED = 130
    """Ctrl-C (SIGINT). A run has saved its last round, and says how to continue."""
    OUTPUT_CLOSED = 141
    """Nobody reads the output any more (SIGPIPE); a run goes on all the same."""
    TERMINATED = 143
    """SIGTERM, as by a scheduler or ``ray job stop``. A run has saved its last round, and says how to continue."""


def code_of(error: BaseException) -> ExitCode:
    """Return the exit status with which an error ends a command."""
    if isinstance(error, ClientError):
        return ExitCode.FAILED
    if isinstance(error, ResourceError):
        return ExitCode.RESOURCES
    if isinstance(error, FedsimError):
        return ExitCode.MISTAKE
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return ExitCode.OUTPUT_CLOSED
    return ExitCode.BUG


def of_signal(number: int) -> int:
    """Return the exit status of a command that a signal ended."""
    return 128 + number
