"""What is planned for a model of each family, from its files alone, against the model that a worker builds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import make_tiny, sweep

sys.path.append(str(Path(__file__).parents[1] / "clients"))
from tiny_models import ENCODERS_ALONE, TINY, backbone, default_head, runnable, save, tiny_model

from clients.backbone.loading import load_shared_weights
from fedsim.configuration.schema import Config
from fedsim.core.errors import ModelError
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.planning.tuned_shape import tuned_shape

KINDS = ("prefix", "soft_prompt", "lora", "ia3", "adapter")
FAST = ("bert", "deberta-v2", "t5", "modernbert", "gpt2", "phi3", "qwen3_moe", "gpt_oss", "olmo")
"""Families whose files or layers name sizes in ways of their own."""


def planned(folder: str, family: str, tuner: str, products: str = "float32") -> Config:
    model = {"path": folder, "attention": runnable(family, "sdpa"), "products": products}
    model["head"] = default_head(family).model_dump()
    return make_tiny(executor="local", model=model, tuner={"kind": tuner})


@pytest.mark.parametrize("family", sweep(TINY, FAST))
def test_numbers_and_bytes_are_those_of_the_model_that_is_built(tmp_path, family):
    folder = save(tiny_model(family), tmp_path)
    for products in ("float32", "bfloat16"):
        config = planned(folder, family, "lora", products)
        weights, shape = load_shared_weights(config.model), model_shape(config.model)
        assert shape.num_parameters == sum(parameter.numel() for parameter in tiny_model(family).parameters())
        stored = weights.rounded(config.model.product_dtype).nbytes
        # Tables of positions and frequencies, which are no parameters, and biases are not worth counting.
        assert estimate_memory(config, shape, 300, 3).weights == pytest.approx(stored, rel=0.05)
    for tuner in KINDS:
        config = planned(folder, family, tuner)
        if family in ("deberta-v2", *ENCODERS_ALONE) and tuner == "prefix":
            with pytest.raises(ModelError, match=rf"tuner\.kind=prefix cannot be used with a {family}"):
                tuned_shape(config, shape)
            continue
        own = backbone(weights, tuner=config.tuner, prompt_length=config.prompt.length)
        assert tuned_shape(config, shape).layer_size == own.geometry.layer_size, tuner


@pytest.mark.parametrize("family", ENCODERS_ALONE)
def test_a_head_that_an_encoder_alone_lacks_is_refused_by_a_plan_too(tmp_path, family):
    model = {"path": save(tiny_model(family), tmp_path)}
    config = make_tiny(executor="local", model=model, tuner={"kind": "lora"})
    with pytest.raises(ModelError, match=r"model\.head\.kind=verbalizer needs is its decoder's; set"):
        tuned_shape(config, model_shape(config.model))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", sweep(TINY, ("qwen3_moe", "gpt_oss", "modernbert")))
def test_quantised_weights_take_what_is_planned(tmp_path, family, kind):
    """Also of a mixture of experts, whose attention alone is quantised: experts are no linear maps."""
    folder = save(tiny_model(family), tmp_path)
    config = planned(folder, family, "lora")
    weights, shape = load_shared_weights(config.model), model_shape(config.model)
    quantised = config.model_copy(update={"model": config.model.model_copy(update={"quantize": kind})})
    stored = weights.quantized(kind).nbytes
    estimates = [estimate_memory(each, shape, 300, 3).weights for each in (config, quantised)]
    assert estimates[1] == pytest.approx(stored, rel=0.08)
    assert estimates[0] - estimates[1] == weights.nbytes - stored > 0
