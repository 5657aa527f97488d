"""Where a run ends: after its last round, or earlier where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stopped:
    """Why a run ended before its last round."""

    rule: str
    """``call`` where a program asked for it (:meth:`fedsim.simulation.run.Run.stop`)."""
    reason: str
    """For people."""


class Stop:
    """Takes requests to stop, and settles after which round that is.

    Attributes
    ----------
    last
        The round after which the run ends.
    stopped
        Why it ends before ``rounds``; None where it does not.
    left
        Reason and message for the records where a program leaves the run before its end.
    """

    def __init__(self, rounds: int) -> None:
        self.last = rounds
        self.stopped: Stopped | None = None
        self.left = "left", "the program left the run before its last round"
        self._asked: Stopped | None = None

    def ask(self, rule: str, reason: str) -> None:
        """Ask the run to end after the round that is on record now, or is next to be."""
        self._asked = self._asked or Stopped(rule, reason)

    def reached(self, round: int) -> bool:
        """Whether the run ends after ``round``, the last one on record.

        What was settled stays: a run that has lost state after its last round does that round again, and no other.
        """
        if self._asked is not None and self.stopped is None and round < self.last:
            self.last, self.stopped = round, self._asked
        return round >= self.last
