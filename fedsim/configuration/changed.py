"""The keys of a config that differ from their defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fedsim.configuration.schema import Config
from fedsim.core.schema import Schema

_NAMES = ("name", "output")
"""Keys that name a run and are no setting of it."""


class Change(NamedTuple):
    """A key with its value and its default."""

    key: str
    value: Any
    default: Any


def changed(config: Config) -> list[Change]:
    """Return the keys that have an effect and differ from their defaults, in the order of the config."""
    plain = Config().server.kind
    found = [change for change in _changed(config, "") if change.key not in _NAMES]
    if config.server.kind != plain:  # each kind has a section of its own, with itself as the default
        found = [change for change in found if change.key != "server.kind"]
        at = next((place for place, change in enumerate(found) if change.key > "server"), len(found))
        found.insert(at, Change("server.kind", config.server.kind, plain))
    return found


def _changed(schema: Schema, above: str) -> Iterator[Change]:
    for name, field in type(schema).model_fields.items():
        if name in schema.useless:
            continue
        value = getattr(schema, name)
        if isinstance(value, Schema):
            inner = {key.removeprefix(f"{name}.") for key in schema.useless if key.startswith(f"{name}.")}
            yield from (each for each in _changed(value, f"{above}{name}.") if each.key.rpartition(".")[2] not in inner)
        elif value != (default := field.get_default(call_default_factory=True)):
            yield Change(f"{above}{name}", value, default)


def value_text(value: Any) -> str:
    """Return a value as a line of YAML would hold it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {value_text(each)}' for key, each in value.items())}}}"
    return str(value)
