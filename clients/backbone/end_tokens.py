"""The tokens at which a model's own configuration ends a generated text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from clients.backbone.loading import config_values
from clients.backbone.location import locate
from clients.config import ModelConfig


def end_tokens(config: ModelConfig) -> tuple[int, ...]:
    """Return the ids in ``eos_token_id`` of a model's generation_config.json, or of its config.json if it has none."""
    location = locate(config)
    try:
        own: Any = GenerationConfig.from_pretrained(location).eos_token_id
    except (
        OSError,
        ValueError,
        json.JSONDecodeError,
    ):  # no such file, or none that can be read: transformers does without
        own = None
    return _ids(own) or _ids(_plain(config_values(location, config.location)).get("eos_token_id"))


def _plain(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values.get("text_config") or values


def _ids(value: Any) -> tuple[int, ...]:
    """Return ids that a configuration gives as one number, as several, or not at all."""
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple(int(token) for token in several)
