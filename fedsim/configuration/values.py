"""Nested config values given from Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fedsim.core.errors import shown


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in the types of YAML: sections become dictionaries, NumPy numbers plain ones, paths text.

    Raises
    ------
    ValueError
        For values that no file could hold, such as those that contain themselves.
    """
    result: dict[str, Any] = json.loads(json.dumps(values, default=_plain))
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        return value.tolist()
    return str(value)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with nested ``changes``: groups of keys are merged, other values replaced."""
    result = dict(base)
    for key, value in changes.items():
        held = result.get(key)
        result[key] = merged(held if isinstance(held, dict) else {}, value) if isinstance(value, dict) else value
    return result


def leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each key in parts, with its value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def as_override(keys: tuple[str, ...], value: Any) -> str:
    """Return a key and its value as written on a command line, shortened if long."""
    return f"{'.'.join(keys)}={value if isinstance(value, str) else shown(value)}"
