"""T5's attention: transformers and PEFT as the oracle, whatever its config.json says; laws of all ways through it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bias_switches import BIASED, OF_THE_DECODER
from cohorts import Cohort, assert_same, poolings, specification
from peft import LoraConfig, get_peft_model
from peft_oracle import assert_same_as_peft
from support import sweep
from test_family_table import agree
from test_packing import OWNERS, SHUFFLED, texts
from test_tuners import numbers
from tiny_models import (
    ENCODERS_ALONE,
    backbone,
    batch,
    save,
    tiny_model,
    transformer_layers,
)

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.model_files import ENCODERS_ALONE as NAMES
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners import packed_prefix
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner

LAYERS = (0, 2)
LORA = TunerConfig(kind="lora", rank=3, alpha=5.0, targets=("q", "k", "v", "o", "wo"))
MEAN = HeadConfig(kind="classifier")
families = pytest.mark.parametrize("family", sweep(ENCODERS_ALONE, [f for f in ("t5", "umt5") if f in ENCODERS_ALONE]))
switches = pytest.mark.parametrize(
    ("family", "name"),
    sweep(
        [(family, name) for family in ENCODERS_ALONE for name in BIASED],
        [case for case in (("t5", "two maps before it"), ("umt5", "few distances")) if case[0] in ENCODERS_ALONE],
    ),
)


@pytest.fixture(autouse=True)
def _little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packed_prefix._MAX_PADDING_SLOTS, "cpu", 14)


def made(folder: Path, family: str, **changes: object) -> str:
    return save(tiny_model(family, **changes), folder)


def built(folder: str, tuner: TunerConfig = LORA, **keys: object) -> Backbone:
    config = ModelConfig(path=folder, head=MEAN, **keys)
    weights = load_shared_weights(config).stored(config)
    return Backbone.build(weights, config, make_tuner(tuner, PromptConfig(), weights.family), 3, None, "cpu")


def heads_of(model: Backbone, clients: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn((clients, *shape), generator=generator) for name, shape in model.head_shapes}


def test_it_is_the_contract_of_all_encoders_without_an_lm_head():
    assert [name for name, row in FAMILIES.items() if row.lm_kind == "base"] == [*NAMES]
    assert all(FAMILIES[name].position_bias and FAMILIES[name].encoder_alone for name in NAMES)


@switches
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_and_gradients_are_those_of_peft(tmp_path, family, name, attention):
    changes = BIASED[name]
    ours = backbone(made(tmp_path, family, **changes), None, attention, dtype="float64", tuner=LORA)
    config = LoraConfig(
        r=3, lora_alpha=5.0, target_modules=list(LORA.targets), layers_to_transform=list(LAYERS), layers_pattern="block"
    )
    assert_same_as_peft(ours, get_peft_model(tiny_model(family, **changes), config), family, ".weight")


@switches
def test_packed_padded_cached_and_alone_agree(tmp_path, family, name):
    folder = made(tmp_path, family, **BIASED[name])
    for tuner in (LORA, TunerConfig(kind="adapter", bottleneck=5), TunerConfig(kind="soft_prompt", length=3)):
        agree(backbone(folder, MEAN, dtype="float64", tuner=tuner), f"{name} {tuner.kind}")


@families
def test_a_switch_changes_results_and_what_is_of_the_decoder_changes_none(tmp_path, family):
    data, found = batch("right", num_tokens=20), {}
    for name, changes in BIASED.items():
        found[name] = backbone(made(tmp_path / name, family, **changes), tuner=LORA, dtype="float64")

    def plain(model: Backbone) -> torch.Tensor:
        return model.last_hidden_state(data, torch.empty((1, 0, model.geometry.layer_size), dtype=torch.float64), ())

    expected = plain(found.pop("as it is"))
    for name, model in found.items():
        assert not torch.equal(plain(model), expected), name
    config = tmp_path / "as it is" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | OF_THE_DECODER))
    assert torch.equal(plain(backbone(config.parent, tuner=LORA, dtype="float64")), expected)


@families
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_without_what_is_trained_bits_are_those_of_the_plain_model(tmp_path, padding, family):
    data, model = batch(padding), backbone(made(tmp_path, family), tuner=LORA)
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    with torch.no_grad():
        expected = tiny_model(family)(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    none = torch.empty((1, 0, model.geometry.layer_size))
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(model.hidden_states(data, none, ()), expected, strict=True)
    )


@families
def test_texts_have_no_greatest_length(tmp_path, family):
    """Longer ones than are kept, beside short ones, after those have been asked for."""
    model = backbone(made(tmp_path, family), MEAN, dtype="float64", tuner=LORA)
    table, theirs = texts(np.array([5, 300, 140, 3])), tiny_model(family).double()
    tuned, heads = 0 * numbers(model.geometry, 2, 1), {k: v.double() for k, v in heads_of(model, 1).items()}
    for order in ([0, 3], [0, 1, 2, 3], [2, 3]):
        found = model.read(table.pack(np.array(order)), tuned, LAYERS, heads)[0].logits_BC
        for mine, example in zip(found, order, strict=True):
            ids = torch.from_numpy(table.batch(np.array([example])).input_ids_BT)
            with torch.no_grad():
                mean_D = theirs(input_ids=ids).last_hidden_state[0].mean(0)
            expected = heads["head.weight"][0] @ mean_D + heads["head.bias"][0]
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@families
def test_a_step_behind_an_evaluation_is_that_before_it(tmp_path, family):
    """An evaluation runs in inference mode, whose tensors no gradient may go through."""
    table, gradients = texts(np.full(10, 7)), []
    for evaluated in (False, True):
        model = backbone(made(tmp_path, family), MEAN, tuner=LORA)
        tuned, heads = numbers(model.geometry, 2, 3).detach().float().requires_grad_(), heads_of(model, 3)
        if evaluated:
            with torch.inference_mode():
                model.read(table.pack(SHUFFLED), tuned, LAYERS, heads, OWNERS)
        reading, _ = model.read(table.pack(SHUFFLED), tuned, LAYERS, heads, OWNERS)
        gradients.append(torch.autograd.grad(reading.loss_B.sum(), tuned)[0])
    assert torch.equal(*gradients)


@families
def test_clients_leave_no_trace_and_the_model_can_be_used_by_itself(tmp_path, family):
    model, data = backbone(made(tmp_path, family), MEAN, tuner=LORA), texts()
    tuned, heads = numbers(model.geometry, 2, 3).detach().float(), heads_of(model, 3)
    first, _ = model.read(data.pack(SHUFFLED), tuned, LAYERS, heads, OWNERS)
    model.read(data.pack(SHUFFLED), 2 * tuned, LAYERS, heads, OWNERS)
    again, _ = model.read(data.pack(SHUFFLED), tuned, LAYERS, heads, OWNERS)
    assert torch.equal(first.logits_BC, again.logits_BC)
    ids = torch.from_numpy(batch("none").input_ids_BT)
    with torch.no_grad():
        mine, theirs = model.detach()(input_ids=ids), tiny_model(family)(input_ids=ids)
    assert torch.equal(mine.last_hidden_state, theirs.last_hidden_state)


@families
def test_layers_below_the_lowest_tuned_one_build_no_graph(tmp_path, family):
    model, needs = backbone(made(tmp_path, family), MEAN, tuner=LORA), []
    for layer in transformer_layers(model.model):
        layer.register_forward_hook(
            lambda _module, _arguments, output: needs.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    tuned = numbers(model.geometry, 1, 1).float()
    model.read(texts().pack(SHUFFLED), tuned, (1,), heads_of(model, 1))
    assert needs == [False, True, True]


@families
def test_side_by_side_equals_one_by_one(tmp_path, family):
    tuner = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": LORA.targets}
    cohort = Cohort(specification(made(tmp_path, family), poolings(family)[-1], "float64", tuner=tuner))
    jobs = cohort.jobs()
    for ours, theirs in zip(cohort.train(jobs), cohort.train_alone(jobs), strict=True):
        assert_same(ours, theirs, 1e-10)
        assert not np.array_equal(ours.vector_A, cohort.start(0))


@families
@pytest.mark.parametrize(
    ("changed", "tolerance"),
    [
        ({"dtype": "bfloat16"}, 0.3),
        ({"autocast": "bfloat16"}, 0.3),
        ({"products": "bfloat16"}, 0.2),
        ({"quantize": "int8"}, 0.2),
        ({"quantize": "int4"}, 0.8),
        ({"quantize": "int4", "products": "bfloat16"}, 0.8),
        ({"gradient_checkpointing": True}, 1e-12),
    ],
    ids=str,
)
def test_other_formats_are_near_to_float32_and_layers_that_run_twice_the_same(tmp_path, family, changed, tolerance):
    folder, table, gradients = made(tmp_path, family), texts(), []
    for keys in ({}, changed):
        model = built(folder, **keys)
        tuned = (0.1 * numbers(model.geometry, 2, 3)).detach().float().requires_grad_()
        reading, _ = model.read(table.pack(SHUFFLED), tuned, LAYERS, heads_of(model, 3), OWNERS)
        gradients.append(torch.autograd.grad(reading.loss_B.sum(), tuned)[0])
    exact, near = gradients
    assert near.dtype == torch.float32 and near.isfinite().all()
    assert (near - exact).norm() / exact.norm() < tolerance
    assert torch.equal(near, exact) == ("gradient_checkpointing" in changed)


@families
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_maps_are_right_on_every_way(tmp_path, family, kind):
    agree(built(made(tmp_path, family), dtype="float64", quantize=kind), kind)


@pytest.mark.parametrize("way", ["padded", "packed"])
@families
def test_second_derivatives_are_those_of_differences(tmp_path, family, way):
    """What spectra need; they use eager attention."""
    folder = made(tmp_path, family, feed_forward_proj="gelu")  # relu has kinks
    model, table = backbone(folder, MEAN, "eager", dtype="float64", tuner=LORA), texts()
    tuned, heads = 0.3 * numbers(model.geometry, 2, 1), {k: v.double() for k, v in heads_of(model, 1).items()}
    along = torch.randn(tuned.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def gradient(at: torch.Tensor, **keys) -> torch.Tensor:
        reading = (
            model.forward(table.batch(SHUFFLED), at, LAYERS, heads)
            if way == "padded"
            else model.read(table.pack(SHUFFLED), at, LAYERS, heads)[0]
        )
        return torch.autograd.grad(reading.loss_B.sum(), at, **keys)[0]

    at = tuned.detach().requires_grad_()
    (product,) = torch.autograd.grad((gradient(at, create_graph=True) * along).sum(), at)
    step = 1e-3  # its norms run in float32
    ahead, behind = (gradient((tuned + sign * step * along).detach().requires_grad_()) for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-2, atol=2e-3 * float(difference.abs().max()))


@families
def test_dropout_is_drawn(tmp_path, family):
    model, table = backbone(made(tmp_path, family, dropout_rate=0.3), MEAN, tuner=LORA), texts()
    tuned, heads = numbers(model.geometry, 2, 1).float(), heads_of(model, 1)

    def scores() -> torch.Tensor:
        torch.manual_seed(1)
        return model.read(table.pack(SHUFFLED), tuned, LAYERS, heads)[0].logits_BC.detach()

    plain = scores()
    model.set_dropout(True)
    assert not torch.allclose(scores(), plain) and torch.equal(scores(), scores())
