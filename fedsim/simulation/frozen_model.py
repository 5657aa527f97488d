"""The frozen model of a run: its weights, and the number format of its products."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from clients.backbone.held_weights import held
from clients.backbone.product_format import settled
from fedsim.planning.model_notes import on_cpus

if TYPE_CHECKING:
    from clients.backbone.shared_weights import SharedWeights
    from clients.config import ModelConfig
    from fedsim.configuration.schema import Config


def frozen_model(config: Config) -> tuple[ModelConfig, SharedWeights]:
    """Return the section ``model`` with its number format settled, and the weights with their linear maps as it says.

    Raises
    ------
    ModelError
        If the model cannot be read, or not quantised.
    """
    from clients.backbone.loading import load_shared_weights

    before = held(config.model)
    weights = load_shared_weights(config.model) if before is None else before
    hidden_size = weights.family.config(json.loads(weights.config_json)).hidden_size
    model = settled(config.model, hidden_size, on_gpu=not on_cpus(config))
    return model, weights.stored(model) if before is None else before
