"""LoRA: PEFT's numbers and refusals; laws of all tuners are in test_tuners.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohorts import Cohort, specification
from peft import LoraConfig, get_peft_model
from peft_oracle import LAYERS, assert_same_as_peft
from tiny_models import TINY, backbone, batch, save, settled, tiny_model, tuned_families

from clients.backbone.families import FAMILIES
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError

LORA = TunerConfig(kind="lora", rank=3, alpha=5.0)
FEED_FORWARD = {"bert": "output.dense", "gpt2": "c_proj", "llama": "down_proj"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in TINY}


def peft_model(family: str, config: TunerConfig, layers: tuple[int, ...]):
    """Return the model with PEFT's LoRA in some layers."""
    torch.manual_seed(0)
    own = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.scaling == "rslora",
        target_modules=list(config.targets or FAMILIES[family].lora_targets),
        layers_to_transform=list(layers),
        layers_pattern=FAMILIES[family].layers.rpartition(".")[2],
        fan_in_fan_out=family == "gpt2",
    )
    return get_peft_model(tiny_model(family), own)


@tuned_families
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_hidden_states_and_gradients_are_those_of_peft(folders, family, scaling):
    config = LORA.model_copy(update={"scaling": scaling})
    ours = backbone(folders[family], tuner=config, dtype=settled(family))
    assert_same_as_peft(ours, peft_model(family, config, LAYERS), family, ".weight")


def test_a_text_that_is_too_long_is_refused_without_talk_of_a_prompt(folders):
    model = backbone(folders["bert"], tuner=LORA)
    tuned = torch.zeros((1, 1, model.geometry.layer_size))
    with pytest.raises(ModelError, match=r"has 41 tokens, but the model .* for 40; lower data\.max_length$"):
        model.forward(batch(num_tokens=41), tuned, (0,), {})


def test_training_starts_with_b_zero_and_a_drawn_for_each_layer(folders):
    spec = specification(folders["bert"], tuner={"kind": "lora"})
    cohort = Cohort(spec, (0, 1, 2))
    full = cohort.worker.info().full
    start_F = spec.initial_vector(full)
    tuned_LX, _ = full.split(start_F)
    arrays = full.geometry.split(tuned_LX)
    for name, array in arrays.items():
        assert (array == 0).all() if name.endswith("lora_B") else 0.8 < np.abs(array).max() * 32**0.5 <= 1.0
    assert not np.array_equal(tuned_LX[0], tuned_LX[1])


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            ("q_proj",),
            "tuner.targets names 'q_proj', but no linear map of the model's layers has such a name; use some of: ",
        ),
        (("query", "self.query"), "tuner.targets query, self.query name a linear map twice; use longer names"),
    ],
)
def test_targets_that_the_model_lacks_are_refused(folders, targets, words):
    with pytest.raises(ModelError) as caught:
        backbone(folders["bert"], tuner=LORA.model_copy(update={"targets": targets}))
    assert str(caught.value).startswith(words)
