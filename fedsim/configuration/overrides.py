"""Dotted overrides, ``KEY=VALUE``, parsed according to the type of the key.

If a key takes text, such as a path or a name, the characters after ``=`` are the value, without YAML parsing. All other
values are YAML.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from fedsim.configuration.params import schema_of
from fedsim.configuration.yaml_text import load
from fedsim.core.errors import ConfigError, shown
from fedsim.core.schema import Schema


def parse_override(override: str, schema: type[Schema]) -> tuple[tuple[str, ...], Any]:
    """Return an override's key, in parts, and its value; ``KEY=`` and ``KEY=null`` give None, as if the key were not given.

    Raises
    ------
    ConfigError
        If it is not KEY=VALUE, or the value must be YAML and is not.
    """
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"the override {shown(override)} must look like key=value, for example client.optimizer.lr=0.01"
        )
    keys = tuple(part.strip() for part in key.split("."))
    if not value.strip() or value == "null":
        return keys, None
    try:
        return keys, _value(value, _types(keys, schema))
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"the value of the override {shown(override)} is not valid YAML: {error.problem}") from None
    except UnicodeEncodeError:  # surrogates: Python could not decode bytes of the command line
        raise ConfigError(
            f"the value of the override {shown(override)} is not valid text in this system's encoding"
        ) from None


def _value(text: str, types: list[Any]) -> Any:
    """Return a value parsed for the types of its key; keys that do not exist are refused elsewhere."""
    text.encode()
    if all(_is_word(kind) or kind is type(None) for kind in types):
        return text
    if str not in types:
        return load(text)
    # Text or another type: the other type is recognized by its syntax, and everything else is text.
    if text.startswith("{") and any(_is_group(kind) for kind in types):
        return load(text)
    if text.startswith("[") and text.endswith("]") and any(get_origin(kind) in (tuple, list) for kind in types):
        return load(text)
    if any(kind in (int, float, bool) for kind in types):
        try:
            number = load(text)
        except yaml.MarkedYAMLError:
            return text
        return number if isinstance(number, int | float) else text
    return text


def _types(keys: tuple[str, ...], schema: type[Schema]) -> list[Any]:
    """Return the types that a key takes, with unions expanded; empty for a key that does not exist."""
    if keys[0] == "params" and len(keys) > 2:
        own = schema_of(keys[1])
        return [Any] if own is None else _types(keys[2:], own)
    types: list[Any] = [schema]
    for key in keys:
        inner: list[Any] = []
        for kind in types:
            if get_origin(kind) is dict:
                inner += _members(get_args(kind)[1])
            elif _is_group(kind):
                fields = kind.model_fields
                if key not in fields and hasattr(kind, "keys_of_kinds"):  # a section whose keys depend on its kind
                    fields = kind.keys_of_kinds()
                inner += _members(fields[key].annotation) if key in fields else []
        types = inner
    return types


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_word(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))


def _is_group(kind: Any) -> bool:
    return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Schema))
