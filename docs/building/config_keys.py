"""The reference of config keys, made from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from words import prose

from fedsim.configuration.errors import inner_schema
from fedsim.configuration.schema import Config
from fedsim.core.method import METHODS
from fedsim.core.schema import Schema

_NUMBERS = {"integer": "whole number", "number": "number"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def markdown() -> str:
    """Return every key with its type, its default and its meaning, section by section."""
    return "\n".join(_all()) + "\n"


def keys() -> list[str]:
    """Return the dotted names of all keys, sections included, and of those that a kind of server adds."""
    found = [name for name, *_ in _walked(Config)]
    for kind in METHODS:
        found += [f"server.{name}" for name in METHODS[kind].Config.model_fields if f"server.{name}" not in found]
    return found


def _walked(schema: type[Schema], prefix: str = "") -> Iterator[tuple[str, type[Schema], FieldInfo]]:
    for name, field in schema.model_fields.items():
        yield prefix + name, schema, field
        if (inner := inner_schema(field.annotation)) is not None:
            yield from _walked(inner, f"{prefix}{name}.")


def _all() -> Iterator[str]:
    yield "## The run\n"
    sections = []
    for name, field in Config.model_fields.items():
        if inner_schema(field.annotation) is None:
            yield from _key(name, Config, field, 4)
        else:
            sections.append((name, field))
    for name, field in sections:
        yield from _section(name, field, 2)


def _section(name: str, field: FieldInfo, level: int) -> Iterator[str]:
    schema = inner_schema(field.annotation)
    assert schema is not None
    yield f"{'#' * min(level, 3)} `{name}`\n"
    if _default(field) is None:
        yield "a section, or null · default `null`\n{: .key }\n"
    yield f"{prose(field.description or schema.__doc__)}\n"
    below = []
    for inner, inside in schema.model_fields.items():
        if inner_schema(inside.annotation) is None:
            yield from _key(f"{name}.{inner}", schema, inside, 4)
        else:
            below.append((f"{name}.{inner}", inside))
    if name == "server":
        yield from _kinds()
    for dotted, inside in below:
        yield from _section(dotted, inside, level + 1)


def _kinds() -> Iterator[str]:
    """Yield the keys that each kind of server adds: once where kinds share a key with its default."""
    alike: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str], tuple[type[Schema], FieldInfo]] = {}
    for kind in METHODS:
        schema = METHODS[kind].Config
        for name, field in schema.model_fields.items():
            same = (name, json.dumps(_plain(_default(field))))
            alike.setdefault(same, []).append(kind)
            found.setdefault(same, (schema, field))
    for (name, _), kinds in sorted(alike.items(), key=lambda each: [*alike].index(each[0])):
        schema, field = found[name, _]
        of = "all kinds" if len(kinds) == len(METHODS) else ", ".join(kinds)
        yield from _key(f"server.{name}", schema, field, 4, f"with server.kind: {of}")


def _key(name: str, schema: type[Schema], field: FieldInfo, level: int, more: str = "") -> Iterator[str]:
    yield f"{'#' * level} `{name}`\n"
    key = name.rpartition(".")[2]
    kind = _kind(schema.model_json_schema()["properties"].get(key, {}))
    default = (
        "needed" if field.is_required() else f"default `{json.dumps(_plain(_default(field)), ensure_ascii=False)}`"
    )
    words = " · ".join(filter(None, [kind, default, more]))
    yield f"{words}\n{{: .key }}\n"
    if field.description:
        yield f"{prose(field.description)}\n"


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Schema):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _kind(schema: dict[str, Any]) -> str:
    """Return in words which values a key takes, by its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(_kind, schema["anyOf"]))))
    if "const" in schema or "enum" in schema:
        return " · ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")])).replace(" · ", " or ")
    kind = schema.get("type", "")
    if isinstance(kind, list):
        return " or ".join(dict.fromkeys(_kind({"type": each}) for each in kind))
    if kind in _NUMBERS:
        bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema]
        return " ".join([_NUMBERS[kind], ", ".join(bounds)]).strip()
    if kind == "array":
        items = schema.get("items") or next(iter(schema.get("prefixItems", [])), {})
        return f"list of {_kind(items) or 'values'}"
    words = {"string": "text", "boolean": "`true` or `false`", "null": "null", "object": "group of keys"}
    return words.get(kind, "group of keys" if "$ref" in schema or "allOf" in schema else "")
