"""Adapters: numbers of the package ``adapters``, norms as if the model's own were changed, start and refusals.

Laws of all tuners are in test_tuners.py; how the traces were made is in golden/make_adapters.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohorts import specification
from golden.make_adapters import BOTTLENECK, CONFIGS, TRACES, filled
from tiny_models import CONFIGS as FAMILIES
from tiny_models import backbone, batch, same_at_tokens, save, tiny_model, transformer_layers

from clients.backbone.families import FAMILIES as ROWS
from clients.config import HeadConfig
from clients.tuners.adapter import AdapterTuner
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError
from fedsim.core.layout import PromptGeometry
from fedsim.core.tokens import TokenBatch

LAYERS = (0, 1, 2)
ADAPTER = TunerConfig(kind="adapter", bottleneck=BOTTLENECK)
BASE = HeadConfig(kind="classifier")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family, "base"), root / family) for family in FAMILIES}


@pytest.mark.parametrize("family", CONFIGS)
def test_hidden_states_and_gradients_are_those_of_the_package_adapters(tmp_path, family):
    with np.load(TRACES) as file:
        trace = {name.partition("/")[2]: file[name] for name in file.files if name.startswith(f"{family}/")}
    model = backbone(save(filled(family), tmp_path), BASE, tuner=ADAPTER)
    layers, names = (0, 1), [name for name, _ in model.geometry.arrays]
    assert {f"number/{layer}/{name}" for layer in layers for name in names} == {
        n for n in trace if n.startswith("number")
    }
    pieces = [np.concatenate([trace[f"number/{layer}/{name}"].reshape(-1) for name in names]) for layer in layers]
    tuned = torch.from_numpy(np.stack(pieces)[None]).requires_grad_()
    zeros = np.zeros(3, np.int64)
    data = TokenBatch(trace["ids"], trace["mask"], None, zeros, zeros)
    states = [torch.from_numpy(trace[f"state/{i}"]) for i in range(3)]
    same_at_tokens(model.hidden_states(data, tuned, layers), states, data, 1e-5)

    output = model.last_hidden_state(data, tuned, layers)
    last = torch.from_numpy(trace["mask"].sum(1) - 1)
    loss = (output[torch.arange(3), last] * torch.from_numpy(trace["loss_weight"])).sum()
    parts = model.geometry.split(torch.autograd.grad(loss, tuned)[0])
    for place, layer in enumerate(layers):
        for name in names:
            expected = torch.from_numpy(trace[f"gradient/{layer}/{name}"])
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(parts[name][0, place], expected, rtol=1e-5, atol=1e-5 * scale)


def numbers(shape, zero: tuple[str, ...]) -> torch.Tensor:
    """Return random numbers of one client for all layers, zero in arrays whose names contain some words."""
    tuned = 0.3 * torch.randn((1, len(LAYERS), shape.layer_size), generator=torch.Generator().manual_seed(2))
    for name, array in shape.split(tuned).items():
        if any(word in name for word in zero):
            array.zero_()
    return tuned


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_way_up_and_changes_it_is_the_plain_model_to_the_bit(folders, family):
    model, data = backbone(folders[family], BASE, tuner=ADAPTER), batch("right")
    tuned = numbers(model.geometry, ("up", "_change"))
    assert tuned.any()
    plain = model.hidden_states(data, tuned[:, :0], ())
    for mine, theirs in zip(model.hidden_states(data, tuned, LAYERS), plain, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_of_norms_act_as_if_the_model_had_other_weights(folders, family):
    """Every change matters, and what a norm passes back to its input is what the changed one would."""
    model, data = backbone(folders[family], BASE, tuner=ADAPTER), batch("right")
    tuned = numbers(model.geometry, ("up",)).requires_grad_()
    plain = tiny_model(family, "base")
    for name, array in model.geometry.split(tuned.detach()).items():
        path, _, part = name.rpartition(".")
        if part.endswith("_change"):
            for layer, change in enumerate(array[0]):
                norm = transformer_layers(plain)[layer].get_submodule(path)
                getattr(norm, part.removesuffix("_change")).data.add_(change)
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    output = plain(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    same_at_tokens(model.hidden_states(data, tuned, LAYERS), list(output.hidden_states), data)

    assert (family == "olmo") == (not any(name.endswith("_change") for name, _ in model.geometry.arrays))
    if family == "olmo":  # its norms have no numbers
        return
    path = f"{ROWS[family].norms[0]}.weight"
    weights = [layer.get_parameter(path) for layer in transformer_layers(plain)]
    positions = torch.from_numpy(data.read_positions_B)
    rows = torch.arange(len(positions))
    expected = torch.autograd.grad(output.last_hidden_state[rows, positions].sin().sum(), weights)
    own = model.last_hidden_state(data, tuned, LAYERS)
    gradients = torch.autograd.grad(own[rows, positions].sin().sum(), tuned)[0]
    found = model.geometry.split(gradients)[f"{path}_change"][0]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5 * max(1.0, float(theirs.abs().max())))


def test_weights_start_truncated_and_all_else_at_zero(folders):
    spec = specification(folders["bert"], BASE, tuner={"kind": "adapter"})
    shape = backbone(folders["bert"], BASE, tuner=TunerConfig(kind="adapter")).geometry
    arrays = shape.split(spec.tuner.initial(shape, 1, seed=0))
    assert arrays["attention.down.weight"].shape == (64, 32)
    for name, array in arrays.items():
        if array.ndim == 2:
            assert 1.9e-3 < np.abs(array).max() <= 2e-3, name
            assert array.std() == pytest.approx(0.88e-3, rel=0.05), name  # truncation narrows a normal's deviation
        else:
            assert not array.any(), name


def test_norms_are_left_alone_where_the_config_says_so(folders):
    model = backbone(folders["llama"], BASE, tuner=ADAPTER.model_copy(update={"layer_norms": False}))
    assert {name.rpartition(".")[0] for name, _ in model.geometry.arrays} == {
        f"{place}.{way}" for place in ("attention", "feed_forward") for way in ("down", "up")
    }


def test_a_model_without_the_modules_is_refused(folders):
    layers = transformer_layers(tiny_model("gpt2", "base"))
    tuner = AdapterTuner(ADAPTER, ROWS["llama"].sublayer_outputs, ROWS["llama"].norms)
    with pytest.raises(
        ModelError, match=r"^tuner.kind=adapter needs a module self_attn.o_proj in each layer, which the "
    ):
        tuner.shape(PromptGeometry(3, 4, 0, 8), layers)
