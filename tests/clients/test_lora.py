"""LoRA: PEFT's numbers and refusals; laws of all tuners are in test_tuners.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohorts import Cohort, specification
from peft import LoraConfig, get_peft_model
from tiny_models import CONFIGS, backbone, batch, same_at_tokens, save, tiny_model

from clients.backbone.families import FAMILIES
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays

families = pytest.mark.parametrize("family", CONFIGS)
LORA = TunerConfig(kind="lora", rank=3, alpha=5.0)
FEED_FORWARD = {"bert": "output.dense", "gpt2": "c_proj", "llama": "down_proj"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def numbers(shape: LayerArrays, layers: int, clients: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random A and B of each client."""
    generator = torch.Generator().manual_seed(2)
    return (0.3 * torch.randn((clients, layers, shape.layer_size), generator=generator)).to(dtype).requires_grad_()


def peft_model(family: str, config: TunerConfig, layers: tuple[int, ...]):
    """Return the model with PEFT's LoRA in some layers."""
    torch.manual_seed(0)
    own = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.scaling == "rslora",
        target_modules=list(config.targets or FAMILIES[family].lora_targets),
        layers_to_transform=list(layers),
        fan_in_fan_out=family == "gpt2",
    )
    return get_peft_model(tiny_model(family), own)


@families
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_hidden_states_and_gradients_are_those_of_peft(folders, family, scaling):
    config = LORA.model_copy(update={"scaling": scaling})
    layers, data = (0, 2), batch("right")
    ours, theirs = backbone(folders[family], tuner=config), peft_model(family, config, layers)
    tuned = numbers(ours.geometry, len(layers))
    arrays = ours.geometry.split(tuned)
    mine = {}
    for place, layer in enumerate(layers):
        for name, array in arrays.items():
            target, matrix = name.rsplit(".", 1)
            path = f"{FAMILIES[family].layers}.{layer}.{target}.{matrix}.default"
            found = [p for n, p in theirs.named_parameters() if f"{path}.weight" in n]
            found[0].data.copy_(array[0, place].detach())
            mine[(place, name)] = found[0]
    assert len(mine) == sum(p.requires_grad for p in theirs.parameters())
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    states = theirs.base_model.model.base_model(
        input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    same_at_tokens(ours.hidden_states(data, tuned, layers), list(states), data)

    rows = torch.arange(len(ids))
    weights = torch.randn(states[-1][:, 0].shape, generator=torch.Generator().manual_seed(1))
    theirs_loss = (states[-1][rows, torch.from_numpy(data.read_positions_B)] * weights).sum()
    expected = torch.autograd.grad(theirs_loss, list(mine.values()))
    output = ours._run(ours._tokens(data), tuned, layers, None).last_hidden_state
    own_loss = (output[rows, torch.from_numpy(data.read_positions_B)] * weights).sum()
    (gradient,) = torch.autograd.grad(own_loss, tuned)
    parts = ours.geometry.split(gradient)
    for (place, name), theirs_gradient in zip(mine, expected, strict=True):
        scale = float(theirs_gradient.abs().max())
        torch.testing.assert_close(parts[name][0, place], theirs_gradient, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


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
