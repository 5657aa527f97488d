"""Values given by a config file and overrides, before validation, and the place of each key."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml

from fedsim.configuration.errors import Key, inner_schema
from fedsim.configuration.presets import presets
from fedsim.configuration.yaml_text import line_of, load
from fedsim.core.errors import ConfigError, closest, shown
from fedsim.core.schema import Schema
from fedsim.core.uses import without


def read_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a config file's text and its nested values.

    Raises
    ------
    ConfigError
        Naming the file, the line and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        named = f"file {path}" if path.suffix else f"file or preset {path.as_posix()}"
        raise ConfigError(f"there is no config {named}{_meant(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {getattr(error, 'strerror', None) or error}") from None
    return text, parse_yaml(text, str(path))


def _meant(path: Path) -> str:
    """Return a suggestion for a file that does not exist: one of its folder with a similar name, or else a preset."""
    files = {file.stem: str(file) for file in sorted(path.parent.glob("*.y*ml"), reverse=True)}
    ours = {preset.name.rpartition("/")[2]: preset.name for preset in reversed(presets())}
    for names in (files, ours):
        if name := closest(path.stem, names, 0.6):
            return f" (did you mean {names[name]!r}?)"
    return "" if path.suffix else "; 'fedsim presets' lists the presets"


def parse_yaml(text: str, named: str) -> dict[str, Any]:
    """Return the nested values of a YAML text, which messages call ``named``.

    Raises
    ------
    ConfigError
        If it is not YAML, or does not hold keys and values.
    """
    try:
        values = load(text)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        refusal = ConfigError(f"{named}{place} is not valid YAML: {error.problem}")
        refusal.where = f"{named}{place}"
        raise refusal from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{named} must hold keys and values such as 'rounds: 20', not a {type(values).__name__}")
    return values


def set_key(values: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    """Set the key that an override names."""
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"the override {shown(override)} sets a key inside {'.'.join(keys[: depth + 1])}, which is the value "
                f"{shown(inner)}"
            )
        values = inner
    values[keys[-1]] = value


def place_of(path: Path, text: str, sources: dict[tuple[str, ...], str], key: Key) -> str:
    """Return where a key was given: an override, or a file with the line if the key is in it.

    Parameters
    ----------
    text
        The file's text.
    sources
        Overrides by the key they set.
    """
    for length in range(len(key), 0, -1):
        words = tuple(str(part) for part in key[:length])
        if words in sources:
            return f"override {shown(sources[words])}"
    for keys, override in sources.items():
        if key and keys[: len(key)] == tuple(str(part) for part in key):
            return f"override {shown(override)}"
    line = line_of(text, key) if text.strip() else None
    return f"{path}, line {line}" if line else str(path)


def without_nulls(schema: type[Schema], values: Any) -> Any:
    """Return given values without nulls for keys that only some choices have: such a null counts as not given.

    A key for which null is a valid value keeps it.
    """
    if not isinstance(values, dict):
        return values
    for name, field in schema.model_fields.items():
        if name in values and (inner := inner_schema(field.annotation)) is not None:
            values = {**values, name: without_nulls(inner, values[name])}
    for key in schema.all_uses():
        parts = key.split(".")
        if _at(values, parts) is None and not _takes_null(schema, parts):
            values = without(values, parts)
    return values


def _at(values: Any, parts: list[str]) -> Any:
    for part in parts:
        if not isinstance(values, dict):
            return ...
        values = values.get(part, ...)
    return values


def _takes_null(schema: type[Schema], parts: list[str]) -> bool:
    for part in parts[:-1]:
        inner = inner_schema(schema.model_fields[part].annotation)
        assert inner is not None
        schema = inner
    return NoneType in get_args(schema.model_fields[parts[-1]].annotation)
