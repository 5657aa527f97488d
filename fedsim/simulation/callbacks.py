"""Callbacks: the base class, and early stopping."""

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
    """Base class of callbacks; override the hooks you need.

    Callbacks run in the driver process, in the order given. An exception in one ends the run like an exception in the loop
    body: the last recorded round is saved, everything is closed, and the caller gets the exception. Return values are
    ignored; to end a run cleanly, call ``run.stop(reason)``.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Schema of the plug-in's keys in section ``params.NAME``; the values are in :attr:`params`."""
    params: Any = None
    """An instance of ``Config``, or None without one."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, params: Any = None) -> Callback:
        """Create a callback that a config names in ``callbacks``, from its ``Config`` if it has one."""
        return cls() if cls.Config is None else cls(params)

    def on_start(self, run: Run) -> None:
        """Called before the first round, after data and model are loaded."""

    def on_round(self, run: Run, done: RoundRecord) -> None:
        """Called once for each round, after it is recorded."""

    def on_end(self, run: Run) -> None:
        """Called at the end, when ``run.summary`` is available; not called if the run was left or interrupted."""


class EarlyStop(Callback):
    """Stops a run when a metric reaches a target or stops improving.

    Its state is not saved: a resumed run counts patience from zero. The rules in the config section ``stop`` keep their
    state across a resume.

    Parameters
    ----------
    metric
        A numeric field of :class:`~fedsim.records.round_record.RoundRecord`.
    target
        Stop after the first round that reaches this value.
    patience
        Stop after this many rounds without improvement.
    best
        ``min`` if lower is better; the default is ``min`` for losses and ``max`` otherwise.

    Raises
    ------
    ConfigError
        If the metric is unknown, or neither rule is given.
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
            raise ConfigError(f"EarlyStop: a round has no metric {shown(metric)}{suggestion(metric, known)}")
        if target is None and patience is None:
            raise ConfigError("EarlyStop needs target (the value to reach) or patience (a number of rounds)")
        if best not in (None, "max", "min"):
            raise ConfigError(f"EarlyStop: best is {shown(best)}, but must be 'max' or 'min'")
        self._metric, self._target, self._patience = metric, target, patience
        self._sign = -1.0 if best == "min" or (best is None and "loss" in metric) else 1.0
        self._best, self._best_round = -math.inf, 0

    def on_start(self, run: Run) -> None:
        """Reset the state of an earlier run."""
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
            run.stop(f"{self._metric} has not improved in {self._patience} rounds")


CALLBACKS: Registry[type[Callback]] = Registry("callback", "callbacks", check=subclass_of(Callback))
