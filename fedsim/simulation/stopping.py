"""Where a run ends: after its last round, or earlier where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.configuration.schema import Config
from fedsim.simulation.totals import Totals


@dataclass(frozen=True)
class Stopped:
    """Why a run ended before its last round."""

    rule: str
    """``target``, ``patience``, ``seconds`` or ``bytes``; ``call`` where a program asked for it."""
    reason: str
    """For people."""


def rule_that_applies(config: Config, totals: Totals, seconds: float) -> Stopped | None:
    """Return the first rule of the section ``stop`` that asks a run with these figures to end.

    It is by the figures of the whole run that rules judge, so a run that was killed as one applied ends where it would have.
    """
    rules, on = config.stop, f"on the {config.evaluation.select_on} examples"
    value, best_round = totals.selected_metric, totals.selected_round or 0
    if rules.target is not None and value >= rules.target:
        return Stopped("target", f"the metric {on}, {value:.4g}, has reached stop.target={rules.target:g}")
    if rules.patience is not None and totals.judged_round - best_round >= rules.patience:
        return Stopped(
            "patience", f"the metric {on} was best after round {best_round}; stop.patience={rules.patience} rounds"
        )
    if rules.seconds is not None and seconds >= rules.seconds:
        return Stopped("seconds", f"{seconds:.0f} s have passed; stop.seconds={rules.seconds:g}")
    traffic = totals.bytes_up + totals.bytes_down
    if rules.bytes is not None and traffic >= rules.bytes:
        return Stopped("bytes", f"{traffic:,} bytes would have been sent; stop.bytes={rules.bytes:g}")
    return None


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

    def ask(self, stopped: Stopped | None) -> None:
        """Ask the run to end after the round that is on record now, or is next to be; None asks for nothing."""
        self._asked = self._asked or stopped

    def reached(self, round: int, rule: Stopped | None = None) -> bool:
        """Whether the run ends after ``round``, because it is the last, that was asked for, or a rule applies.

        What was settled stays: a run that has lost state after its last round does that round again, and no other.
        """
        asked = self._asked or rule
        if asked is not None and self.stopped is None and round < self.last:
            self.last, self.stopped = round, asked
        return round >= self.last
