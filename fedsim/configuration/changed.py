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
    # Each kind of server has a section of its own, with itself as the default.
    usual, kind = Config(server={"kind": config.server.kind}), Config().server.kind
    found = [change for change in _changed(config, usual, "") if change.key not in _NAMES]
    if config.server.kind != kind:
        found.append(Change("server.kind", config.server.kind, kind))
    sections = list(type(config).model_fields)
    return sorted(found, key=lambda change: sections.index(change.key.partition(".")[0]))


def _changed(schema: Schema, usual: Schema, above: str) -> Iterator[Change]:
    for name in type(schema).model_fields:
        if name in schema.useless:
            continue
        value, default = getattr(schema, name), getattr(usual, name)
        if isinstance(value, Schema) and type(default) is type(value):
            inner = {key.removeprefix(f"{name}.") for key in schema.useless if key.startswith(f"{name}.")}
            found = _changed(value, default, f"{above}{name}.")
            yield from (change for change in found if change.key.removeprefix(f"{above}{name}.") not in inner)
        elif value != default:
            yield Change(f"{above}{name}", value, default)


def value_text(value: Any) -> str:
    """Return a value as a line of YAML would hold it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Schema):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {value_text(each)}' for key, each in value.items())}}}"
    return str(value)
