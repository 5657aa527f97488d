"""The section ``params``: keys of plug-ins, by registered name, each checked by the plug-in's ``Config``."""

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
"""Keys that can be ``auto``, and the config attribute that resolves them."""
_ALSO = {"compression.up.kind": ("compression.down.kind",)}
"""Further keys that name an entry of a registry."""


def checked_params(config: Config) -> dict[str, Schema]:
    """Return the keys of all plug-ins in use that have any, with defaults for those not given.

    Raises
    ------
    ValueError
        If keys are given for a plug-in that is not loaded, is not in use, or has no keys.
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
    """Return the ``Config`` class of the plug-in registered under a name, if it has one."""
    for kind in WITH_PARAMS:
        things: Registry[Any] = find(REGISTRIES[kind])
        if (schema := getattr(things.get(name), "Config", None)) is not None:
            found: type[Schema] = schema
            return found
    return None


def _checked(name: str, schema: type[Schema], values: Any) -> Schema:
    if isinstance(values, schema):
        return values
    if isinstance(values, Schema):  # from before its plug-in was reloaded
        values = values.model_dump(mode="json")
    # Nested under its full key, so that pydantic's error locations include it.
    adapter: TypeAdapter[dict[str, dict[str, Schema]]] = TypeAdapter(dict[str, dict[str, schema]])  # type: ignore[valid-type]
    text = json.dumps({"params": {name: {} if values is None else values}}, default=str)
    return adapter.validate_json(text, strict=True)["params"][name]


def _in_use(config: Config) -> Iterator[tuple[str, tuple[str, ...], Registry[Any]]]:
    """Yield each key that can name plug-ins with a ``Config``, the names it holds, and their registry."""
    for kind in WITH_PARAMS:
        things: Registry[Any] = find(REGISTRIES[kind])
        assert things.key is not None
        names: tuple[str, ...] = ()
        for key in (things.key, *_ALSO.get(things.key, ())):
            value: Any = config
            for part in _MEANT.get(key, key).split("."):
                value = getattr(value, part)
            names += (value,) if isinstance(value, str) else tuple(value)
        yield things.key, tuple(dict.fromkeys(names)), things


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
