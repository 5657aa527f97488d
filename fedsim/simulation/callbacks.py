"""What a program does beside a run: the base class of callbacks, and one that stops early."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsim.core.errors import ConfigError, shown, suggestion
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema
from fedsim.records.round_record import RoundRecord

if TYPE_CHECKING:
    from fedsim.simulation.run import Run


class Callback:
    """What is done beside a run; override what is of use.

    Callbacks are called in the driver's process, in the order given. What one raises ends the run as an exception in the
    loop's body would: the last round on record is saved, all is closed, and the exception is the caller's. What one returns
    has no meaning; to end a run in order, call ``run.stop(reason)``.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; they come as :attr:`params`."""
    params: Any = None
    """Its ``Config``, None where it has none."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, params: Any = None) -> Callback:
        """Make it from its ``Config``, None where it has none: where a config names it in ``callbacks``."""
        return cls() if cls.Config is None else cls(params)

    def on_start(self, run: Run) -> None:
        """Do something before the first round; data and model have been read."""

    def on_round(self, run: Run, done: RoundRecord) -> None:
        """Do something with a round that has come to be on record; each round comes once."""

    def on_end(self, run: Run) -> None:
        """Do something at the end; ``run.summary`` is there. Not called for a run that was left or interrupted."""


class EarlyStop(Callback):
    """Stops a run that is good enough, or does not get better.

    What it has seen is not saved: in a resumed run, patience is counted anew. The section ``stop`` of a config has rules
    that go on where they were.

    Parameters
    ----------
    metric
        A number of :class:`~fedsim.records.round_record.RoundRecord`.
    target
        Stop after the first round that is at least as good.
    patience
        Stop after so many rounds without a better value.
    best
        ``min`` where less is better; if not given, that is so for losses.

    Raises
    ------
    ConfigError
        If there is no such number, or no rule is given.
    """

    def __init__(
        self,
        metric: str = "global_metric",
        target: float | None = None,
        patience: int | None = None,
        best: Literal["max", "min"] | None = None,
    ) -> None:
        known = [field.name for field in fields(RoundRecord) if field.name != "round"]
        if metric not in known:
            raise ConfigError(f"EarlyStop: there is no number {shown(metric)} of a round{suggestion(metric, known)}")
        if target is None and patience is None:
            raise ConfigError("EarlyStop needs target, the value to reach, or patience, a number of rounds")
        if best not in (None, "max", "min"):
            raise ConfigError(f"EarlyStop: best is {shown(best)}, but must be 'max' or 'min'")
        self._metric, self._target, self._patience = metric, target, patience
        self._sign = -1.0 if best == "min" or (best is None and "loss" in metric) else 1.0
        self._best, self._best_round = -math.inf, 0

    def on_start(self, run: Run) -> None:
        """Forget what an earlier run has shown."""
        self._best, self._best_round = -math.inf, 0

    def on_round(self, run: Run, done: RoundRecord) -> None:
        """Stop the run if a rule applies."""
        self._best_round = self._best_round or done.round - 1
        value = getattr(done, self._metric)
        if value is not None and self._sign * value > self._best:
            self._best, self._best_round = self._sign * value, done.round
        if self._target is not None and value is not None and self._sign * value >= self._sign * self._target:
            run.stop(f"{self._metric} {value:.4g} has reached {self._target:g}")
        elif self._patience is not None and done.round - self._best_round >= self._patience:
            run.stop(f"{self._metric} has not got better in {self._patience} rounds")


CALLBACKS: Registry[type[Callback]] = Registry("callback", "callbacks", check=subclass_of(Callback))
