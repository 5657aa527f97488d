"""Stop rules and stop requests: when a run ends before its last round."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsim.configuration.schema import Config
from fedsim.simulation.totals import Totals
from server.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class Stopped:
    """Why a run ended before its last round."""

    rule: str
    """``target``, ``patience``, ``seconds``, ``bytes`` or ``epsilon``; ``call`` if a program requested it."""
    reason: str
    """Explanation for the user."""


def rule_that_applies(
    config: Config, totals: Totals, seconds: float, privacy: PrivacyPlan | None = None
) -> Stopped | None:
    """Return the first rule of section ``stop`` that ends a run with these figures, or None.

    Rules look at the figures of the whole run, so a run killed just as a rule applied still ends at the same round.
    """
    rules = config.stop
    metric, value, best_round, judged_round = _judged(config, totals)
    if rules.target is not None and value >= rules.target:
        return Stopped("target", f"{metric}, {value:.4g}, has reached stop.target={rules.target:g}")
    if rules.patience is not None and judged_round - best_round >= rules.patience:
        return Stopped("patience", f"{metric} was best after round {best_round}; stop.patience={rules.patience} rounds")
    if rules.seconds is not None and seconds >= rules.seconds:
        return Stopped("seconds", f"{seconds:.0f} s have passed; stop.seconds={rules.seconds:g}")
    traffic = totals.bytes_up + totals.bytes_down
    if rules.bytes is not None and traffic >= rules.bytes:
        return Stopped("bytes", f"{traffic:,} bytes would have been sent; stop.bytes={rules.bytes:g}")
    if rules.epsilon is not None and privacy is not None:
        following = privacy.accounting.epsilon(len(totals.seconds_rounds) + 1)
        if following > rules.epsilon:
            return Stopped(
                "epsilon", f"another round would take epsilon to {following:.4g}; stop.epsilon={rules.epsilon:g}"
            )
    return None


def _judged(config: Config, totals: Totals) -> tuple[str, float, int, int]:
    """Return the metric that is judged in words, the best of it so far, the first round with it, and the last that has one."""
    if (name := config.stop.metric) is not None:
        best, best_round, last = totals.written.get(name, (math.nan, 0, 0))
        return f"{name} of written responses", best, int(best_round), int(last)
    words = f"the metric on the {config.evaluation.select_on} examples"
    return words, totals.selected_metric, totals.selected_round or 0, totals.judged_round


class Stop:
    """Takes stop requests, and decides after which round the run ends.

    Attributes
    ----------
    last
        The round after which the run ends.
    stopped
        Why it ends before ``rounds``; None if it does not.
    left
        Reason and message for the records if a program leaves the run early.
    """

    LEFT = "left", "the program left the run before its last round"

    def __init__(self, rounds: int) -> None:
        self.last = rounds
        self.stopped: Stopped | None = None
        self.left = self.LEFT
        self._asked: Stopped | None = None

    def ask(self, stopped: Stopped | None) -> None:
        """Request a stop after the round recorded last, or the next one if none is; None requests nothing."""
        self._asked = self._asked or stopped

    def reached(self, round: int, rule: Stopped | None = None) -> bool:
        """Whether the run ends after ``round``: the last round, a requested stop, or a rule that applies.

        The decision is final: a run that loses state after its last round repeats that round and adds no other.
        """
        asked = self._asked or rule
        if asked is not None and self.stopped is None and round < self.last:
            self.last, self.stopped = round, asked
        return round >= self.last
