"""DeBERTa's attention: transformers and PEFT as the oracle, whatever its config.json says; laws of all ways through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohorts import Cohort, assert_same, poolings, specification
from peft import LoraConfig, get_peft_model
from relative_switches import RELATIVE
from support import sweep
from test_family_table import agree
from test_packing import OWNERS, SHUFFLED, texts
from test_tuners import numbers
from tiny_models import (
    LABEL_WORDS,
    WITHOUT_PREFIX,
    backbone,
    batch,
    same_at_tokens,
    save,
    tiny_model,
    transformer_layers,
)

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners import packed_prefix
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from fedsim.core.errors import ModelError

FAMILY = "deberta-v2"
LAYERS = (0, 2)
TARGETS = ("query_proj", "key_proj", "value_proj")
LORA = TunerConfig(kind="lora", rank=3, alpha=5.0, targets=TARGETS)
MEAN = HeadConfig(kind="classifier", pooling="mean")
switches = pytest.mark.parametrize(
    "name", sweep(RELATIVE, ("as DeBERTa-v3", "both maps of distances", "few distances"))
)


@pytest.fixture(autouse=True)
def _little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packed_prefix._MAX_PADDING_SLOTS, "cpu", 14)


def made(folder, **changes):
    return save(tiny_model(FAMILY, **changes), folder)


def test_it_is_the_contract_of_all_families_without_a_prefix():
    assert [name for name, row in FAMILIES.items() if row.relative_attention] == [*WITHOUT_PREFIX] == [FAMILY]


@switches
def test_hidden_states_and_gradients_are_those_of_peft(tmp_path, name):
    """With LoRA on all maps that distances go through."""
    changes, data = RELATIVE[name], batch("right", num_tokens=20)
    ours = backbone(made(tmp_path, **changes), dtype="float64", tuner=LORA)
    tuned = numbers(ours.geometry, len(LAYERS), 1)
    config = LoraConfig(r=3, lora_alpha=5.0, target_modules=list(TARGETS), layers_to_transform=list(LAYERS))
    theirs = get_peft_model(tiny_model(FAMILY, **changes).double(), config)
    mine = {}
    for place, layer in enumerate(LAYERS):
        for array_name, array in ours.geometry.split(tuned.detach()).items():
            end = f"encoder.layer.{layer}.{array_name}.default.weight"
            (found,) = [parameter for path, parameter in theirs.named_parameters() if path.endswith(end)]
            found.data = array[0, place].clone()
            mine[place, array_name] = found
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    base = theirs.base_model.model.base_model
    states = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    same_at_tokens(ours.hidden_states(data, tuned, LAYERS), list(states), data, 1e-9)
    rows, positions = torch.arange(len(ids)), torch.from_numpy(data.read_positions_B)
    expected = torch.autograd.grad(states[-1][rows, positions].sin().sum(), list(mine.values()))
    own = ours.last_hidden_state(data, tuned, LAYERS)[rows, positions]
    parts = ours.geometry.split(torch.autograd.grad(own.sin().sum(), tuned)[0])
    for (place, array_name), theirs_gradient in zip(mine, expected, strict=True):
        torch.testing.assert_close(parts[array_name][0, place], theirs_gradient, rtol=1e-8, atol=1e-9)


@switches
def test_packed_padded_cached_and_alone_agree(tmp_path, name):
    folder = made(tmp_path, **RELATIVE[name])
    for tuner in (LORA, TunerConfig(kind="ia3"), TunerConfig(kind="soft_prompt", length=3)):
        if tuner.kind == "soft_prompt" and "embedding_size" in RELATIVE[name]:
            continue
        agree(backbone(folder, MEAN, dtype="float64", tuner=tuner), f"{name} {tuner.kind}")


def test_a_switch_changes_results(tmp_path):
    """Else it would be no switch: each that is run here is followed."""
    same, data = (
        {"as DeBERTa-v3", "written as one word", "size of a head", "no convolution"},
        batch("right", num_tokens=20),
    )
    found = {}
    for name, changes in RELATIVE.items():
        model = tiny_model(FAMILY, "base", **changes)
        ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
        with torch.no_grad():
            found[name] = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    plain = found["as DeBERTa-v3"]
    assert {name for name, states in found.items() if torch.equal(states, plain)} == same


@pytest.mark.parametrize("padding", ["none", "right"])
def test_without_what_is_trained_bits_are_those_of_the_plain_model(tmp_path, padding):
    data, model = batch(padding), backbone(made(tmp_path), tuner=LORA)
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    with torch.no_grad():
        expected = (
            tiny_model(FAMILY).base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        )
    none = torch.empty((1, 0, model.geometry.layer_size))
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(model.hidden_states(data, none, ()), expected, strict=True)
    )


def test_clients_leave_no_trace_and_the_model_can_be_used_by_itself(tmp_path):
    model, data = backbone(made(tmp_path), MEAN, tuner=LORA), texts()
    tuned = numbers(model.geometry, 2, 3).detach().float()
    heads = {name: torch.ones((3, *shape)) for name, shape in model.head_shapes}
    first, _ = model.read(data.pack(SHUFFLED), tuned, LAYERS, heads, OWNERS)
    model.read(data.pack(SHUFFLED), 2 * tuned, LAYERS, heads, OWNERS)
    again, _ = model.read(data.pack(SHUFFLED), tuned, LAYERS, heads, OWNERS)
    assert torch.equal(first.logits_BC, again.logits_BC)
    ids, plain = torch.from_numpy(batch("none").input_ids_BT), tiny_model(FAMILY).base_model
    with torch.no_grad():
        mine, theirs = model.detach().base_model(input_ids=ids), plain(input_ids=ids)
    assert torch.equal(mine.last_hidden_state, theirs.last_hidden_state)


def test_layers_below_the_lowest_tuned_one_build_no_graph(tmp_path):
    model, needs = backbone(made(tmp_path), MEAN, tuner=LORA), []
    for layer in transformer_layers(model.model):
        layer.register_forward_hook(lambda _module, _arguments, output: needs.append(output[0].requires_grad))
    tuned = numbers(model.geometry, 1, 1).float()
    model.read(texts().pack(SHUFFLED), tuned, (1,), {name: torch.ones((1, *s)) for name, s in model.head_shapes})
    assert needs == [False, True, True]


def test_side_by_side_equals_one_by_one(tmp_path):
    tuner = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": TARGETS}
    head = poolings(FAMILY)[2]
    cohort = Cohort(specification(made(tmp_path), head, "float64", model={"attention": "eager"}, tuner=tuner))
    jobs = cohort.jobs()
    for ours, theirs in zip(cohort.train(jobs), cohort.train_alone(jobs), strict=True):
        assert_same(ours, theirs, 1e-10)
        assert not np.array_equal(ours.vector_A, cohort.start(0))


@pytest.mark.parametrize(
    ("half", "tolerance"),
    [({"dtype": "bfloat16"}, 0.15), ({"autocast": "bfloat16"}, 0.15), ({"products": "bfloat16"}, 0.1)],
    ids=str,
)
def test_half_precision_is_near_to_float32(tmp_path, half, tolerance):
    folder, table, gradients = made(tmp_path), texts(), []
    for keys in ({}, half):
        config = ModelConfig(path=folder, attention="eager", **keys)
        weights = load_shared_weights(config).rounded(config.product_dtype)
        model = Backbone.build(weights, config, make_tuner(LORA, PromptConfig(), weights.family), 3, LABEL_WORDS, "cpu")
        tuned = (0.2 * numbers(model.geometry, 2, 3)).detach().float().requires_grad_()
        reading, _ = model.read(table.pack(SHUFFLED), tuned, LAYERS, {}, OWNERS)
        gradients.append(torch.autograd.grad(reading.loss_B.sum(), tuned)[0])
    exact, near = gradients
    assert near.dtype == torch.float32 and near.isfinite().all()
    assert 0 < (near - exact).norm() / exact.norm() < tolerance


@pytest.mark.parametrize("way", ["padded", "packed"])
def test_second_derivatives_are_those_of_differences(tmp_path, way):
    """What spectra need."""
    model, table = backbone(made(tmp_path), dtype="float64", tuner=LORA), texts()
    tuned, along = numbers(model.geometry, 2, 1), torch.randn_like(numbers(model.geometry, 2, 1))

    def gradient(at: torch.Tensor, **keys) -> torch.Tensor:
        reading = (
            model.forward(table.batch(SHUFFLED), at, LAYERS, {})
            if way == "padded"
            else model.read(table.pack(SHUFFLED), at, LAYERS, {})[0]
        )
        return torch.autograd.grad(reading.loss_B.sum(), at, **keys)[0]

    (product,) = torch.autograd.grad((gradient(tuned, create_graph=True) * along).sum(), tuned)
    step = 1e-5
    ahead, behind = (gradient((tuned + sign * step * along).detach().requires_grad_()) for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-4, atol=1e-5 * float(difference.abs().max()))


def test_dropout_is_drawn_in_attention_too(tmp_path):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3}
    model, table = backbone(made(tmp_path, **rates), MEAN, tuner=LORA), texts()
    tuned = numbers(model.geometry, 2, 1).float()
    heads = {name: torch.ones((1, *shape)) for name, shape in model.head_shapes}
    heads["head.weight"] = torch.randn_like(heads["head.weight"])

    def scores() -> torch.Tensor:
        torch.manual_seed(1)
        return model.read(table.pack(SHUFFLED), tuned, LAYERS, heads)[0].logits_BC.detach()

    plain = scores()
    model.set_dropout(True)
    assert not torch.allclose(scores(), plain) and torch.equal(scores(), scores())


def test_it_is_not_compiled(tmp_path):
    with pytest.raises(ModelError, match=r"is a deberta-v2, whose attention .*; set model\.compile=false$"):
        load_shared_weights(ModelConfig(path=made(tmp_path), attention="eager", compile=True))
