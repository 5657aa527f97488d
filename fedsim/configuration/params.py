"""The section ``params``: plug-ins' own keys, by the name that is registered, each checked by its class ``Config``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fedsim.core.errors import suggestion
from fedsim.core.plugins import REGISTRIES, WITH_PARAMS
from fedsim.core.registry import Registry, find
from fedsim.core.schema import Schema

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

_MEANT = {"client.correction": "correction"}
"""Keys that may say ``auto``, and what of a config tells what is meant."""


def checked_params(config: Config) -> dict[str, Schema]:
    """Return the keys of all plug-ins in use that have some, those that are not given at their defaults.

    Raises
    ------
    ValueError
        If keys are given for what is not there, not in use, or has none.
    ValidationError
        If a key is wrong.
    """
    used: dict[str, type[Schema]] = {}
    for _, names, things in _in_use(config):
        for name in names:
            if (schema := getattr(things.get(name), "Config", None)) is not None:
                if name in used:
                    raise ValueError(f"params.{name}: two plug-ins in use have this name; rename one")
                used[name] = schema
    for name, values in config.params.items():
        if name not in used and values is not None:
            raise ValueError(_why_not(config, name))
    return {name: _checked(name, schema, config.params.get(name)) for name, schema in used.items()}


def schema_of(name: str) -> type[Schema] | None:
    """Return the class ``Config`` of what is registered by a name, if it has one."""
    for kind in WITH_PARAMS:
        things: Registry[Any] = find(REGISTRIES[kind])
        if (schema := getattr(things.get(name), "Config", None)) is not None:
            found: type[Schema] = schema
            return found
    return None


def _checked(name: str, schema: type[Schema], values: Any) -> Schema:
    if isinstance(values, schema):
        return values
    if isinstance(values, Schema):  # of a plug-in that was loaded anew
        values = values.model_dump(mode="json")
    # With the keys that lead there: what pydantic says of a mistake names them.
    adapter: TypeAdapter[dict[str, dict[str, Schema]]] = TypeAdapter(dict[str, dict[str, schema]])  # type: ignore[valid-type]
    text = json.dumps({"params": {name: {} if values is None else values}}, default=str)
    return adapter.validate_json(text, strict=True)["params"][name]


def _in_use(config: Config) -> Iterator[tuple[str, tuple[str, ...], Registry[Any]]]:
    """Yield each key that names plug-ins with keys of their own, the names it has, and the registry of all."""
    for kind in WITH_PARAMS:
        things: Registry[Any] = find(REGISTRIES[kind])
        assert things.key is not None
        value: Any = config
        for part in _MEANT.get(things.key, things.key).split("."):
            value = getattr(value, part)
        yield things.key, (value,) if isinstance(value, str) else tuple(value), things


def _why_not(config: Config, name: str) -> str:
    known: list[str] = []
    for key, names, things in _in_use(config):
        if name in things:
            if getattr(things[name], "Config", None) is None:
                return f"params.{name} has no use: the {things.what} {name} has no keys of its own"
            return f"params.{name} has no use with {key}={', '.join(names)}; it is for {key}={name}"
        known += [other for other in things if getattr(things[other], "Config", None) is not None]
    return (
        f"params.{name}: no plug-in of this name is loaded{suggestion(name, known)}; load its file with --load FILE.py"
    )
