"""Shape of what a config trains in each layer, without loading the model."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from clients.backbone.location import locate
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerShape
from fedsim.planning.model_shape import ModelShape

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def tuned_shape(config: Config, model: ModelShape) -> LayerShape:
    """Return what ``config`` trains in each layer of a model.

    Raises
    ------
    ModelError
        If the tuner does not fit the model.
    """
    if config.tuner.kind == "prefix" and not (model.relative_attention or model.position_bias):
        return model.geometry(config.prompt.length)
    return _of_modules(config, model)


def _of_modules(config: Config, model: ModelShape) -> LayerShape:
    """Ask the tuner about a model that is built without memory for its weights."""
    import torch

    from clients.backbone.families import family_of
    from clients.backbone.fitting import check_used
    from clients.backbone.loading import config_values
    from clients.tuners.make import make_tuner

    name = config.model.location
    values = config_values(locate(config.model), name)
    family = family_of(values, name)
    check_used(family, config.model)
    with torch.device("meta"):
        base: Any = family.model_class("base")(family.config(values), **family.arguments("base"))
    layers = reduce(getattr, family.layers.split("."), base)
    tuner = make_tuner(config.tuner, config.prompt, family)
    described = family.config(values)
    if tuner.room >= family.max_positions(described):
        raise ModelError(
            f"{tuner.length_key}={tuner.room} leaves no positions for the text, the model {family.limit(described)} for "
            f"{family.max_positions(described)}; shorten it"
        )
    return tuner.shape(model.geometry(0), layers)
