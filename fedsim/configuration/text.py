"""A resolved config as YAML that reads back to the same config, each key with its meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import cache
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from fedsim.configuration.yaml_text import load
from fedsim.core.schema import Schema

_WIDTH = 116


def config_text(config: Schema, *, meanings: bool = True, escaped: bool = False) -> str:
    """Return the config as YAML, with every key's meaning in a comment above it; keys without effect are omitted.

    Parameters
    ----------
    escaped
        Write values in ASCII, with YAML escapes for all other characters.
    """
    return "\n".join(_lines(config, 0, meanings, escaped, frozenset())) + "\n"


def _lines(schema: Schema, depth: int, meanings: bool, escaped: bool, useless: frozenset[str]) -> Iterator[str]:
    pad = "  " * depth
    useless |= schema.useless
    for name, field in type(schema).model_fields.items():
        if name in useless:
            continue
        if meanings:
            yield from _comment(field, pad)
        value = getattr(schema, name)
        if isinstance(value, Schema):
            yield f"{pad}{name}:"
            inner = {key.removeprefix(f"{name}.") for key in useless if key.startswith(f"{name}.")}
            yield from _lines(value, depth + 1, meanings, escaped, frozenset(inner))
        elif isinstance(value, dict) and any(isinstance(each, Schema) for each in value.values()):
            yield f"{pad}{name}:"
            for key, inside in value.items():
                yield f"{pad}  {scalar(key, escaped)}:"
                yield from _lines(inside, depth + 2, meanings, escaped, frozenset())
        else:
            yield f"{pad}{name}: {scalar(value, escaped)}"
            if meanings and value is None and (section := _section(field)) is not None:
                yield f"{pad}# A section, with the keys:"
                yield from _keys_of(section, f"{pad}#   ")
        if depth == 0 and meanings:
            yield ""


def _section(field: FieldInfo) -> type[Schema] | None:
    """Return the schema of a key that holds a section or null; None for any other key."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], Schema):
        return kinds[0]
    return None


def _keys_of(schema: type[Schema], pad: str) -> Iterator[str]:
    """Yield the keys of a section that is null, with their meanings, as comments."""
    for name, field in schema.model_fields.items():
        yield from (f"{pad}# {line}" for line in _wrapped(field.description or "", _WIDTH - len(pad)))
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        inner = type(default) if field.annotation is type(default) else _section(field) if default is None else None
        if inner is not None and issubclass(inner, Schema) and not field.is_required():
            yield f"{pad}{name}:"
            yield from _keys_of(inner, f"{pad}  ")
            continue
        if isinstance(default, Schema):
            default = default.model_dump(mode="json")
        yield f"{pad}{name}: {'(needed)' if field.is_required() else scalar(default, False)}"


def _comment(field: FieldInfo, pad: str) -> Iterator[str]:
    for line in _wrapped(field.description or "", _WIDTH - len(pad)):
        yield f"{pad}# {line}"


@cache
def _wrapped(text: str, width: int) -> tuple[str, ...]:
    """Return the lines of a key's meaning; runs of one process, as in a study, each write all of them."""
    return tuple(textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False))


def scalar(value: Any, escaped: bool = False) -> str:
    """Return a value as YAML on one line, which any reader of YAML takes for the same value."""
    if isinstance(value, tuple):
        value = [list(item) if isinstance(item, tuple) else item for item in value]
    # Quoted, so that YAML 1.1 readers do not take a word for a boolean or a number.
    style = '"' if isinstance(value, str) and not value.isidentifier() else None
    if isinstance(value, str) and value.lower() in {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}:
        style = '"'
    text = _flow(value, style, escaped)
    # PyYAML does not quote words such as 1e3, which YAML 1.2 readers take for numbers.
    return _flow(value, '"', escaped) if isinstance(value, list | dict) and not _reads_back(text, value) else text


def _flow(value: Any, style: str | None, escaped: bool) -> str:
    text = yaml.dump(value, default_flow_style=True, default_style=style, width=10_000, allow_unicode=not escaped)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _reads_back(text: str, value: Any) -> bool:
    try:
        return bool(load(text) == value)
    except yaml.MarkedYAMLError:
        return False
