"""A run's config as others may see it: what its result depends on, without paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedsim.configuration.schema import Config

_HERE = ("output", "executor", "ray", "cache", "tracking", "checkpoint", "callbacks")
"""Sections that no result depends on."""
_FOLDERS = ("model.path", "data.path", "prompt.start_from", "tuner.start_from", "tuner.sources")
"""Keys that hold a path or a name of the hub."""
_FILES = ("data.train_file", "data.validation_file", "world.devices.file", "world.devices.availability.file")
_LOCAL = re.compile(r"[~/\\.]|[A-Za-z]:[\\/]|file:")
"""How a local path begins."""
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def public_values(config: Config, hub_model: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return a config's values for others, and the keys whose paths they have to give themselves.

    Parameters
    ----------
    hub_model
        Name of the model on the Hugging Face hub, if it comes from there.
    """
    values = config.model_dump(mode="json", exclude_none=False)
    for section in _HERE:
        values.pop(section, None)
    for name in (*config.tracking.trackers, *config.callbacks):
        values["params"].pop(name, None)
    hidden: list[str] = []
    return _cleaned(values, "", hub_model, hidden), hidden


def _cleaned(values: Mapping[str, Any], prefix: str, hub_model: str | None, hidden: list[str]) -> dict[str, Any]:
    cleaned: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            cleaned[name] = _cleaned(value, f"{key}.", hub_model, hidden)
        elif isinstance(value, list):
            cleaned[name] = [_text(key, item, hub_model, hidden) for item in value]
        else:
            cleaned[name] = _text(key, value, hub_model, hidden)
    return cleaned


def _text(key: str, value: Any, hub_model: str | None, hidden: list[str]) -> Any:
    if not isinstance(value, str) or not _is_local(key, value, hub_model):
        return value
    hidden.append(key)
    return f"path/to/{key.rpartition('.')[2]}"


def _is_local(key: str, value: str, hub_model: str | None) -> bool:
    if key in _FOLDERS:
        named = value == hub_model if key == "model.path" else False
        return not named
    if key in _FILES:
        return "/" in value or "\\" in value
    # Templates and label words may begin with a dot or a slash.
    return bool(key.startswith("params.") and _LOCAL.match(value))
