"""Frozen weights that this process holds already, for runs one after another that start from the same model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.backbone.shared_weights import SharedWeights
    from clients.config import ModelConfig

_held: dict[str, SharedWeights] = {}


def key_of(config: ModelConfig) -> str:
    """Return what weights depend on, once their files do not change: configs with the same key load the same weights."""
    values = config.model_dump(mode="json")
    values.pop("trunk_cache", None)
    return json.dumps(values, sort_keys=True)


def hold(key: str, weights: SharedWeights) -> None:
    """Hold weights, and let go of those of other models."""
    _held.clear()
    _held[key] = weights


def held(config: ModelConfig) -> SharedWeights | None:
    """Return the weights of a model if they are held; the layers' linear maps are rounded as the config says."""
    return _held.get(key_of(config)) if _held else None
