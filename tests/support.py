"""What several tests share and is no fixture."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from fedsim.configuration.schema import Config
    from fedsim.core.schema import Schema

ROOT = Path(__file__).parents[1]

TINY = {
    "rounds": 3,
    "group_size": 2,
    "data": {"train_examples": 240, "validation_examples": 60},
    "partition": {"clients": 12, "holdout_fraction": 0.2},
    "sampling": {"clients_per_round": 5},
    "prompt": {"length": 4},
    "layers": {"score_batch_size": 8},
    "client": {"epochs": 1},
    "tracking": {"plots": False},
}
"""A run of seconds on the embedded backbone: 12 clients, 5 a round in groups of 2, 3 rounds. Its pictures would take longer."""


UPPER = {"layers": {"choose": "fixed", "fixed": [2, 3], "unselected": "none"}, "group_size": 3}
"""Prompts in the upper layers, so that there are frozen layers to cache, and two groups a round."""
SHARDS = {"evaluation": {"shard_size": 20}}
"""Three calls to an evaluation."""
FINAL = {"evaluation": {**SHARDS["evaluation"], "personalised_start": True, "keep_predictions": True}}
"""The same, and all that can be evaluated at the end."""
FINAL_TABLES = ("personal.parquet", "predictions.parquet")
"""The files that it is in."""


def sweep(cases: Iterable[Any], essential: Collection[Any]) -> list[Any]:
    """Return the cases of a parametrisation; those that are not essential wait for ``make test-wide``."""
    import pytest

    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=() if case in essential else pytest.mark.wide))
    return found


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with nested ``changes``."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def make_tiny(**changes: Any) -> Config:
    """Return a tiny config with changes."""
    from fedsim.configuration.schema import build_config

    return build_config(tiny_values(changes))


def tiny_values(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a tiny config with changes, without those that the changes leave without a use."""
    from clients.tuners.config import ONE_PLACE

    values = merged(TINY, changes)
    if values["layers"].get("choose", "score") != "score":
        values = merged(values, {"layers": {"score_batch_size": changes.get("layers", {}).get("score_batch_size")}})
    if values.get("tuner", {}).get("kind", "prefix") != "prefix":
        values = merged(values, {"prompt": changes.get("prompt")})
    if values.get("tuner", {}).get("kind") in ONE_PLACE:
        values = merged(values, {"layers": changes.get("layers")})
    if values.get("buffer") is not None:
        own = changes.get("sampling", {}).get("clients_per_round")
        values = merged(values, {"sampling": {"clients_per_round": own}})
    if values["client"].get("steps") is not None:
        values = merged(values, {"client": {"epochs": changes.get("client", {}).get("epochs")}})
    return values


def useless_keys(section: Schema, prefix: str = "") -> set[str]:
    """Return all dotted keys under a section that have no use as it stands, those in a section without a use too."""
    from fedsim.configuration.errors import dotted_keys, inner_schema

    keys = set()
    for key in section.useless:
        keys.add(prefix + key)
        schema = type(section)
        for part in key.split("."):
            schema = inner_schema(schema.model_fields[part].annotation) if schema is not None else None
        keys |= {name for name, _ in dotted_keys(schema, f"{prefix}{key}.")} if schema is not None else set()
    for name in type(section).model_fields:
        if hasattr(value := getattr(section, name), "useless"):
            keys |= useless_keys(value, f"{prefix}{name}.")
    return keys


def on_line(start: str, act: Callable[[], object]) -> Console:
    """Return a console that calls ``act`` when a line that starts so is printed; its ``file`` holds all lines."""
    from rich.console import Console

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith(start):
                act()
            return super().write(text)

    return Console(file=Watched(), width=200)


def limit_files(size: int) -> None:
    """Let the system refuse to make files longer than ``size`` bytes, -1 for any size: to a writer it is a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Limit the size of files within a block; see :func:`limit_files`."""
    limit_files(size)
    try:
        yield
    finally:
        limit_files(-1)
