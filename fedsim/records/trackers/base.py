"""The interface of trackers, and what they share: names of metrics, flat values, text without secrets."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedsim.core.errors import ConfigError
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema

Status = Literal["finished", "stopped", "failed"]
"""How a run ended: with its summary; before that, by a signal or a program, so that it can be resumed; by an error."""

_GROUPS = ("generated", "metric", "loss", "clients", "bytes", "seconds")
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
_SHORTEST_SECRET = 6


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run at its start."""

    name: str
    """Name of the run."""
    folder: Path
    """Local folder of the run, for what a tracker writes."""
    group: str | None
    """Name that the run shares with others, such as that of a study."""
    about: Mapping[str, str]
    """Short facts to search by: method, task, model, config_hash, fedsim."""


class Tracker:
    """Base class of trackers; override the methods you need.

    Methods run in the driver's process, on a thread of the tracker's own, one after the other, so they may be slow. One that
    raises is called again before the next one, in the order of the run, and at its end a last time; the run goes on.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Schema of the plug-in's keys in section ``params.NAME``; the values are in :attr:`params`."""
    can_go_back: ClassVar[bool] = False
    """Whether rounds can be taken back; if not, rounds that a run does again are not sent again: their metrics are the same."""
    params: Any = None
    """An instance of ``Config``, or None without one."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, params: Any = None) -> Tracker:
        """Create a tracker that a config names in ``tracking.trackers``, from its ``Config`` if it has one."""
        return cls() if cls.Config is None else cls(params)

    def check(self) -> None:
        """Raise ``ConfigError`` if the tracker cannot be used on this machine; called before anything else happens."""

    def start(self, run: TrackedRun, config: Mapping[str, Any], resumed: str | None) -> str | None:
        """Begin to track a run; return the id by which the service knows it, if it has one.

        Parameters
        ----------
        config
            The resolved config, nested.
        resumed
            The id that an earlier start of the same run returned, to be continued.
        """
        return None

    def go_back(self, first_round: int) -> None:
        """Take back ``first_round`` and later rounds; only called if :attr:`can_go_back`."""

    def round(self, record: Mapping[str, Any]) -> None:
        """Take the record of a round, a row of ``rounds.parquet``; see :func:`scalars`. Round 0 is the start."""

    def picture(self, name: str, path: Path) -> None:
        """Take a picture (PNG), drawn at the end."""

    def artifact(self, path: Path) -> None:
        """Take a file that the run has made: what it trained."""

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """End the tracking, and return when all has arrived.

        Parameters
        ----------
        summary
            The contents of ``summary.json``; empty if the run has not finished.
        """


BUILT_IN = ("tensorboard", "wandb", "mlflow")
"""Trackers with a key of their own in section ``tracking``."""


def _suitable(name: str, thing: Any, what: str) -> Any:
    if name in BUILT_IN:
        raise ConfigError(f"a tracker cannot be named {name!r}: tracking.{name} is fedsim's own; give another name")
    return subclass_of(Tracker)(name, thing, what)


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "tracking.trackers", check=_suitable)
"""Trackers of plug-ins, by name."""


def needs(package: str, extra: str, key: str) -> None:
    """Raise ``ConfigError`` if a package is not installed."""
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ConfigError(f'{key} needs the package {package}: pip install "fedsim[{extra}]", or leave {key} out')


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return a round's finite numbers under the names that all trackers use, such as ``metric/global_metric``."""
    return {
        f"{_group(name)}/{name}": float(value)
        for name, value in record.items()
        if name != "round" and value is not None and math.isfinite(value)
    }


def _group(name: str) -> str:
    return next((group for group in _GROUPS if group in name.split("_")), "other")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by dotted key; lists and empty mappings are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a summary, as ``summary/KEY``."""
    return {
        f"summary/{key}": float(value)
        for key, value in flat(summary)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def without_secrets(text: str) -> str:
    """Return a message without passwords in URLs, and without values of environment variables such as ``WANDB_API_KEY``."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "...")
    return re.sub(r"://[^/\s@]+@", "://...@", text)
