"""The contract that every supported family must keep, on tiny random models."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from support import sweep
from tiny_models import (
    CONFIGS,
    ENCODERS_ALONE,
    ESSENTIAL,
    TINY,
    WITHOUT_SDPA,
    SharedByFamily,
    attention_modules,
    backbone,
    batch,
    cache_oracle,
    every_family,
    plain_positions,
    prompts,
    runnable,
    same_at_tokens,
    save,
    tiny_model,
    transformer_layers,
    widened,
)
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from clients.backbone.families import FAMILIES
from clients.backbone.shared_weights import SharedWeights
from fedsim.core.errors import ModelError
from fedsim.core.tokens import TokenBatch

ALL_LAYERS = (0, 1, 2)
families = pytest.mark.parametrize("family", sweep((*CONFIGS, *WITHOUT_SDPA), ESSENTIAL))
attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SharedWeights]:
    return SharedByFamily(tmp_path_factory.mktemp("models"))


def reference(family: str, attention: str):
    model = tiny_model(family)
    model.config._attn_implementation = runnable(family, attention)
    return model


def loss_gradient(model, data: TokenBatch, prompt: Tensor, layers, clients=None) -> tuple[Tensor, Tensor]:
    reading = model.forward(data, prompt, layers, {}, clients)
    (gradient,) = torch.autograd.grad(reading.loss_B.sum(), prompt)
    return reading.logits_BC.detach(), gradient


def test_every_family_is_under_contract():
    unknown = {name for name, row in FAMILIES.items() if row.encoder_alone} if not ENCODERS_ALONE else set()
    assert set(TINY) == set(FAMILIES) - unknown


@every_family
@attentions
@pytest.mark.parametrize(
    ("padding", "position_offset"),
    # Token tables pad on the right alone; for the left, transformers' own positions behind a prefix differ by family.
    [*((padding, offset) for padding in ("none", "right", "single") for offset in ("none", "paper")), ("left", "none")],
)
def test_equals_key_value_cache(weights, family, attention, padding, position_offset):
    model, data = backbone(weights[family], None, attention, position_offset), batch(padding)
    prompt = prompts(model, ALL_LAYERS)
    with torch.no_grad():
        expected = cache_oracle(reference(family, attention), data, prompt[0], ALL_LAYERS, position_offset)
    same_at_tokens(model.hidden_states(data, prompt, ALL_LAYERS), expected, data)


@families
@attentions
@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2)])
def test_partial_layers_equal_a_cache_masked_elsewhere(weights, family, attention, layers):
    model, data = backbone(weights[family], None, attention, "paper"), batch("right")
    prompt = prompts(model, layers)
    with torch.no_grad():
        expected = cache_oracle(reference(family, attention), data, prompt[0], layers, "paper")
    same_at_tokens(model.hidden_states(data, prompt, layers), expected, data)


@families
def test_gradient_equals_key_value_cache(weights, family):
    model, data = backbone(weights[family], position_offset="paper"), batch("right")
    prompt = prompts(model, ALL_LAYERS)
    _, gradient = loss_gradient(model, data, prompt, ALL_LAYERS)
    plain = reference(family, "sdpa").requires_grad_(False)
    hidden = cache_oracle(plain, data, prompt[0], ALL_LAYERS, "paper")[-1]
    read = hidden[torch.arange(len(hidden)), torch.from_numpy(data.read_positions_B)]
    transform = FAMILIES[family].head_transform
    logits = plain.get_output_embeddings()(transform(plain, read))[:, [11, 42, 7]]
    if (cap := FAMILIES[family].logit_cap(plain.config)) is not None:
        logits = cap * torch.tanh(logits / cap)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels_B), reduction="sum")
    (expected,) = torch.autograd.grad(loss, prompt)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@families
@attentions
def test_gradient_survives_checkpointing(weights, family, attention):
    model, data = backbone(weights[family], None, attention), batch()
    prompt = prompts(model, ALL_LAYERS)
    _, gradient = loss_gradient(model, data, prompt, ALL_LAYERS)
    assert all(gradient[0, layer].abs().max() > 1e-4 for layer in ALL_LAYERS)
    enable = getattr(model.model, "activation_checkpointing_enable", None) or model.model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.set_dropout(True)  # checkpointing works in training mode alone; these models have no dropout
    _, checkpointed = loss_gradient(model, data, prompt, ALL_LAYERS)
    torch.testing.assert_close(checkpointed, gradient, rtol=1e-5, atol=1e-6)


@families
@attentions
@pytest.mark.parametrize("padding", ["none", "right", "single"])
def test_without_a_prompt_bits_are_those_of_the_plain_model(weights, family, attention, padding):
    model, data = backbone(weights[family], None, attention, "paper"), batch(padding)
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    own = mask.bool()  # what stands at padding is nobody's: OPT gives it another position
    with torch.no_grad():
        expected = reference(family, attention).base_model(
            input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
        )
    for layers, length in (((), 4), (ALL_LAYERS, 0)):
        actual = model.hidden_states(data, prompts(model, layers, length=length), layers)
        assert all(torch.equal(a[own], e[own]) for a, e in zip(actual, expected.hidden_states, strict=True))


@families
@attentions
def test_padding_changes_nothing(weights, family, attention):
    model, data = backbone(weights[family], None, attention), batch("none", num_examples=2, num_tokens=6)
    wider = widened(data, 5)
    prompt = prompts(model, (1, 2))
    for short, long in zip(
        loss_gradient(model, data, prompt, (1, 2)), loss_gradient(model, wider, prompt, (1, 2)), strict=True
    ):
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)


@attentions
def test_without_a_prompt_the_plain_implementation_runs(weights, attention):
    model, data = backbone(weights["llama"], None, attention), batch("none")
    seen: list[str] = []
    for module in attention_modules(model.model):
        module.register_forward_hook(lambda module, *_: seen.append(module.config._attn_implementation))
    model.hidden_states(data, prompts(model, ()), ())
    model.hidden_states(data, prompts(model, (0,)), (0,))
    assert seen == [attention] * 3 + [f"fedsim_prefix_{attention}"] * 3


@families
def test_clients_leave_no_trace(weights, family):
    model, data = backbone(weights[family]), batch()
    mine, other = prompts(model, (0, 2), seed=1), prompts(model, (1,), seed=2)
    before = loss_gradient(model, data, mine, (0, 2))
    loss_gradient(model, data, other, (1,))
    model.hidden_states(data, other, (1,))
    after = loss_gradient(model, data, mine, (0, 2))
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


@families
@attentions
def test_a_batch_of_several_clients_equals_separate_calls(weights, family, attention):
    model, data = backbone(weights[family], None, attention), batch("right", num_examples=6)
    prompt = prompts(model, ALL_LAYERS, clients=3)
    owner = np.array([2, 0, 2, 1, 0, 2])
    logits, gradient = loss_gradient(model, data, prompt, ALL_LAYERS, torch.from_numpy(owner))
    for client in range(3):
        rows = owner == client
        own = TokenBatch(
            data.input_ids_BT[rows],
            data.attention_mask_BT[rows],
            None,
            data.read_positions_B[rows],
            data.labels_B[rows],
        )
        alone = prompt[client : client + 1].detach().requires_grad_()
        own_logits, own_gradient = loss_gradient(model, own, alone, ALL_LAYERS)
        torch.testing.assert_close(logits[torch.from_numpy(rows)], own_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient[client], own_gradient[0], rtol=1e-5, atol=1e-5)


@families
def test_weights_stay_as_they_were(weights, family):
    before = weights[family].fingerprint()
    model = backbone(weights[family])
    loss_gradient(model, batch(), prompts(model, ALL_LAYERS), ALL_LAYERS)
    assert weights[family].fingerprint() == before
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


@families
@attentions
def test_detach_restores_the_model(weights, family, attention):
    model, data = backbone(weights[family], None, attention), batch("none")
    model.hidden_states(data, prompts(model, ALL_LAYERS), ALL_LAYERS)
    attention = runnable(family, attention)
    assert model.model.config._attn_implementation == f"fedsim_prefix_{attention}"
    restored = model.detach()
    assert restored.config._attn_implementation == attention
    assert all(module.config._attn_implementation == attention for module in attention_modules(restored))
    with torch.no_grad():
        logits = [m(torch.from_numpy(data.input_ids_BT)).logits for m in (restored, reference(family, attention))]
    assert torch.equal(*logits)


@families
def test_a_prompt_that_no_layer_asks_for_is_an_error(weights, family):
    model, data = backbone(weights[family]), batch()
    model.detach()
    with pytest.raises(ModelError, match="layer 1 never requested its prompt"):
        model.forward(data, prompts(model, (1, 2)), (1, 2), {})


@families
def test_layers_below_the_lowest_prompt_build_no_graph(weights, family):
    model, data = backbone(weights[family]), batch()
    needs_gradient: list[bool] = []
    for layer in transformer_layers(model.model):
        layer.register_forward_hook(lambda _module, _args, out: needs_gradient.append(out.requires_grad))
    model.forward(data, prompts(model, (1,)), (1,), {})
    assert needs_gradient == [False, True, True]


@families
def test_layers_without_a_prompt_get_no_more_keys(weights, family):
    if runnable(family, "sdpa") != "sdpa":
        pytest.skip("it has no sdpa attention")
    model, data = backbone(weights[family]), batch()
    widths: dict[int, int] = {}

    def spy(module, query, key, value, mask, **kwargs):
        widths[module.layer_idx] = key.shape[2]
        assert mask.shape[-1] == key.shape[2]
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clients.tuners.prefix.sdpa_attention_forward", spy)
        model.hidden_states(data, prompts(model, (1,)), (1,))
    assert widths == {0: 9, 1: 13, 2: 9}


def test_mistral_sliding_window_always_sees_the_prompt(tmp_path):
    window = {"sliding_window": 3}
    model, data = backbone(save(tiny_model("mistral", **window), tmp_path), attention="eager"), batch("none")
    prompt = prompts(model, ALL_LAYERS)
    plain = tiny_model("mistral", **window)
    plain.config._attn_implementation = "eager"
    steps = torch.arange(9)
    near = (steps[None] <= steps[:, None]) & (steps[None] > steps[:, None] - 3)
    seen = torch.cat([torch.ones(9, 4, dtype=torch.bool), near], dim=1).expand(4, 1, -1, -1)
    expected = _with_float_mask(plain, data, prompt[0], torch.where(seen, 0.0, torch.finfo(torch.float32).min))
    same_at_tokens(model.hidden_states(data, prompt, ALL_LAYERS), expected, data)


def _with_float_mask(plain, data: TokenBatch, prompt_LKHPD: Tensor, mask: Tensor) -> list[Tensor]:
    def use_mask(_module, args, kwargs):
        return args, kwargs | {"attention_mask": mask}

    for module in attention_modules(plain):
        module.register_forward_pre_hook(use_mask, with_kwargs=True)
    with torch.no_grad():
        return cache_oracle(plain, data, prompt_LKHPD, ALL_LAYERS, "none")


def test_positions_are_those_of_transformers():
    ids = torch.from_numpy(batch("right").input_ids_BT)
    for family in CONFIGS:
        model = tiny_model(family)
        mine = FAMILIES[family].position_ids(model.config, ids, 0).expand_as(ids)
        assert torch.equal(mine, plain_positions(model, ids)), family


def test_registered_names_are_our_own(weights):
    backbone(weights["bert"])
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward


def _bits_of_all(weights: dict[str, SharedWeights]) -> dict[str, tuple[bytes, bytes]]:
    torch.set_num_threads(1)
    answers = {}
    for family, shared in weights.items():
        model = backbone(shared)
        logits, gradient = loss_gradient(model, batch(), prompts(model, (0, 2)), (0, 2))
        answers[family] = (logits.numpy().tobytes(), gradient.numpy().tobytes())
    return answers


def test_a_fresh_process_gives_the_same_bits(weights):
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(_bits_of_all, weights).result(timeout=120)
    try:
        assert _bits_of_all(weights) == theirs
    finally:
        torch.set_num_threads(threads)
