"""Virtual tokens in the hidden states: PEFT's soft prompts, late prompts one example at a time, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from test_packing import texts
from tiny_models import TINY, backbone, batch, save, tiny_model, tuned_families
from torch import nn
from torch.nn import functional

from clients.backbone.families import FAMILIES
from clients.config import HeadConfig
from clients.tuners.config import TunerConfig
from clients.tuners.late_prompt import pooled_segments
from fedsim.core.errors import ModelError

LENGTH = 3
SOFT = TunerConfig(kind="soft_prompt", length=LENGTH)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in TINY}


def numbers(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (0.5 * torch.randn((1, 1, size), generator=torch.Generator().manual_seed(2))).to(dtype).requires_grad_()


@tuned_families
def test_a_soft_prompt_is_that_of_peft(folders, family):
    data, ours = batch("right"), backbone(folders[family], tuner=SOFT)
    tuned = numbers(ours.geometry.layer_size)
    config = PromptTuningConfig(
        task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=LENGTH, token_dim=32, num_attention_heads=4
    )
    theirs = get_peft_model(tiny_model(family).base_model, config)
    weight = theirs.prompt_encoder["default"].embedding.weight
    weight.data.copy_(tuned.detach().view_as(weight))
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    expected = theirs(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, LENGTH:]
    found = ours.last_hidden_state(data, tuned, (0,))
    own = mask.bool()
    torch.testing.assert_close(found[own], expected[own], rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected[own].shape, generator=torch.Generator().manual_seed(1))
    (wanted,) = torch.autograd.grad((expected[own] * weights).sum(), weight)
    (gradient,) = torch.autograd.grad((found[own] * weights).sum(), tuned)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(gradient.view_as(wanted), wanted, rtol=1e-5, atol=1e-5 * scale)


def one_by_one(family: str, config: TunerConfig, tuned: torch.Tensor, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the last hidden states of each text, by the layers themselves, without padding."""
    base = tiny_model(family).base_model.double()
    layers = base
    for name in FAMILIES[family].layers.split("."):
        layers = getattr(layers, name)
    size, found = base.config.hidden_size, []
    for row in ids:
        hidden, angles = entering(base, row)
        for number, layer in enumerate(layers):
            if number == config.depth:
                prompt = late_prompt(config, tuned, hidden, size, causal=FAMILIES[family].predicts_next)
                hidden = torch.cat([prompt, hidden], dim=1)
                angles = rotary(base, hidden)
            output = layer(hidden, **angles)
            hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden[:, config.length :]
        for norm in ("ln_f", "norm"):
            hidden = getattr(base, norm)(hidden) if hasattr(base, norm) else hidden
        found.append(hidden[0])
    return found


def entering(base: nn.Module, row: torch.Tensor) -> tuple[torch.Tensor, dict[str, object]]:
    """Return the input of layer 0 for one text, and its rotary angles."""
    ids = row.unsqueeze(0)
    if hasattr(base, "embeddings"):
        return base.embeddings(ids), {}
    if hasattr(base, "wpe"):
        return base.wte(ids) + base.wpe(torch.arange(len(row))), {}
    hidden = base.embed_tokens(ids)
    return hidden, rotary(base, hidden)


def rotary(base: nn.Module, hidden: torch.Tensor) -> dict[str, object]:
    if not hasattr(base, "rotary_emb"):
        return {}
    return {"position_embeddings": base.rotary_emb(hidden, torch.arange(hidden.shape[1]).unsqueeze(0))}


def late_prompt(
    config: TunerConfig, tuned: torch.Tensor, hidden: torch.Tensor, size: int, *, causal: bool
) -> torch.Tensor:
    """Return the virtual tokens of one text, as the authors' modules compute them."""
    flat, length = tuned.reshape(-1), config.length
    if config.generator == "none":
        return flat.view(1, length, size)
    rank = config.bottleneck
    made = length * size if config.generator == "npg" else size
    weight, bias, up, up_bias = flat.split([rank * size, rank, made * rank, made])
    weight, up = weight.view(rank, size), up.view(made, rank)
    if config.generator == "npg":
        low = functional.relu(functional.linear(hidden[:, -1 if causal else 0], weight, bias))
        return functional.linear(low, up, up_bias).view(1, length, size)
    pool = nn.AdaptiveMaxPool1d(length) if config.generator == "mppg" else nn.AdaptiveAvgPool1d(length)
    low = pool(functional.linear(hidden, weight, bias).transpose(1, 2)).transpose(1, 2)
    return functional.linear(functional.relu(low), up, up_bias)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("generator", ["none", "npg", "appg", "mppg"])
def test_a_late_prompt_is_that_of_the_layers_themselves(folders, family, generator):
    bottleneck = {} if generator == "none" else {"bottleneck": 5}
    config = TunerConfig(kind="late_prompt", length=LENGTH, depth=1, generator=generator, **bottleneck)
    ours = backbone(folders[family], HeadConfig(kind="classifier"), dtype="float64", tuner=config)
    tuned = numbers(ours.geometry.layer_size, torch.float64)
    lengths = np.array([2, 7, 5])
    table = replace(texts(lengths), type_ids_Z=None, read_positions_N=lengths - 1)
    data = table.batch(np.arange(3))
    ids = [torch.from_numpy(table.pack(np.array([row])).ids_Z) for row in range(3)]
    expected = one_by_one(family, config, tuned, ids)
    found = ours.last_hidden_state(data, tuned, (1,))
    found = [rows[: len(row)] for rows, row in zip(found, ids, strict=True)]
    exact = 1e-5 if family == "llama" else 1e-10
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=exact, atol=exact)
    gradients = [torch.autograd.grad(sum((rows**2).sum() for rows in side), tuned)[0] for side in (found, expected)]
    scale = float(gradients[1].abs().max())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=exact, atol=exact * scale)


def soft_prompted(family: str, row: torch.Tensor, make) -> torch.Tensor:
    """Return the last hidden states of one text behind the soft prompt that ``make`` returns for it, by the model itself."""
    base = tiny_model(family).base_model.double()
    words = base.get_input_embeddings()(row.unsqueeze(0))
    with torch.no_grad():
        plain = base(input_ids=row.unsqueeze(0)).last_hidden_state[0]
    summary = plain[-1] if FAMILIES[family].predicts_next else plain[0]
    prompt = make(words[0], summary).unsqueeze(0)
    return base(inputs_embeds=torch.cat([prompt, words], dim=1)).last_hidden_state[0, prompt.shape[1] :]


def idpg(config: TunerConfig, tuned: torch.Tensor, size: int, summary: torch.Tensor) -> torch.Tensor:
    """Return IDPG's prompt: each map a loop over its terms' Kronecker products."""
    terms, rank, made = config.terms, config.bottleneck, config.length * size
    cut = [terms**3, rank * size // terms, rank, terms**3, made * rank // terms, made]
    left, right, bias, up_left, up_right, up_bias = tuned.reshape(-1).split(cut)

    def dense(left: torch.Tensor, right: torch.Tensor, size_out: int, size_in: int) -> torch.Tensor:
        lefts = left.view(terms, terms, terms)
        rights = right.view(terms, size_out // terms, size_in // terms)
        return sum(torch.kron(lefts[term], rights[term]) for term in range(terms))

    low = functional.gelu(dense(left, right, rank, size) @ summary + bias)
    return (dense(up_left, up_right, made, rank) @ low + up_bias).view(config.length, size)


def attempt(
    config: TunerConfig, tuned: torch.Tensor, size: int, words: torch.Tensor, sources: torch.Tensor
) -> torch.Tensor:
    """Return ATTEMPT's prompt: a loop over the prompts of the mixture."""
    rank = config.bottleneck
    cut = [config.length * size, rank * size, size * rank, size, size]
    own, down, up, weight, bias = tuned.reshape(-1).split(cut)
    own = own.view(config.length, size)
    query = up.view(size, rank) @ functional.silu(down.view(rank, size) @ words.max(0).values)
    query = functional.layer_norm(query, (size,), weight, bias)
    prompts = [*sources, own]
    scores = torch.stack([prompt.max(0).values @ query for prompt in prompts]) / (math.e * size)
    return own + sum(share * prompt for share, prompt in zip(scores.softmax(0), prompts, strict=True))


GENERATED = TunerConfig(kind="generated_prompt", length=LENGTH, terms=4, bottleneck=8)
MIXTURE = TunerConfig(kind="prompt_mixture", length=LENGTH, bottleneck=5, random_sources=2)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("config", [GENERATED, MIXTURE], ids=["idpg", "attempt"])
def test_a_prompt_made_from_the_text_is_that_of_a_plain_reference(folders, family, config):
    ours = backbone(folders[family], HeadConfig(kind="classifier"), dtype="float64", tuner=config)
    size, lengths = ours.hidden_size, np.array([2, 7, 5])
    tuned = numbers(ours.geometry.layer_size, torch.float64)
    table = replace(texts(lengths), type_ids_Z=None, read_positions_N=lengths - 1)
    sources = [torch.from_numpy(array).double() for array in ours._tuner.constants.values()]

    def make(words: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
        if config is GENERATED:
            return idpg(config, tuned, size, summary)
        return attempt(config, tuned, size, words, sources[0])

    ids = [torch.from_numpy(table.pack(np.array([row])).ids_Z) for row in range(3)]
    expected = [soft_prompted(family, row, make) for row in ids]
    output = ours.last_hidden_state(table.batch(np.arange(3)), tuned, (0,))
    found = [rows[: len(row)] for rows, row in zip(output, ids, strict=True)]
    exact = 1e-5 if family == "llama" else 1e-10
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=exact, atol=exact)
    gradients = [torch.autograd.grad(sum((rows**2).sum() for rows in side), tuned)[0] for side in (found, expected)]
    scale = float(gradients[1].abs().max())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=exact, atol=exact * scale)


def test_a_hot_mixture_is_the_prompt_and_the_mean_of_all(folders):
    """ATTEMPT's identity: with a high temperature the text no longer matters."""
    hot = MIXTURE.model_copy(update={"temperature": 1e12})
    heads = HeadConfig(kind="classifier")
    mixed, soft = (backbone(folders["bert"], heads, dtype="float64", tuner=config) for config in (hot, SOFT))
    tuned = numbers(mixed.geometry.layer_size, torch.float64).detach()
    own = mixed.geometry.split(tuned)["prompt"][0, 0]
    sources = torch.from_numpy(mixed._tuner.constants["sources"]).double()
    mean = own + torch.cat([sources, own.unsqueeze(0)]).mean(0)
    outputs = [
        side.last_hidden_state(batch("right"), numbers, (0,))
        for side, numbers in ((mixed, tuned), (soft, mean.view(1, 1, -1)))
    ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)


def test_terms_that_do_not_divide_are_refused(folders):
    with pytest.raises(ModelError, match=r"tuner.terms=5 must divide the model's hidden size, 32; set tuner.terms"):
        backbone(folders["bert"], tuner=TunerConfig(kind="generated_prompt", terms=5))


def test_a_late_prompt_at_the_input_is_a_soft_prompt(folders):
    """Where the model adds no positions to its input."""
    late = TunerConfig(kind="late_prompt", length=LENGTH, depth=0, generator="none")
    heads = HeadConfig(kind="classifier")
    sides = [backbone(folders["llama"], heads, tuner=config) for config in (late, SOFT)]
    tuned = numbers(sides[0].geometry.layer_size)
    outputs = [side.last_hidden_state(batch("right"), tuned, (0,)) for side in sides]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("maximum", [True, False])
def test_segments_are_those_of_adaptive_pooling(maximum):
    lengths, parts = np.array([1, 3, 4, 9]), 4
    rows = torch.randn((int(lengths.sum()), 5), generator=torch.Generator().manual_seed(1))
    pool = functional.adaptive_max_pool1d if maximum else functional.adaptive_avg_pool1d
    expected = [pool(text.T.unsqueeze(0), parts)[0].T for text in rows.split(lengths.tolist())]
    torch.testing.assert_close(pooled_segments(rows, lengths, parts, maximum=maximum), torch.stack(expected))


def test_a_depth_without_a_layer_above_is_refused(folders):
    with pytest.raises(
        ModelError, match=r"tuner.depth=3 leaves no layer for the prompt, the model has 3; set tuner.depth=2"
    ):
        backbone(folders["bert"], tuner=TunerConfig(kind="late_prompt", depth=3))


def test_a_prompt_that_fills_the_positions_is_refused(folders):
    with pytest.raises(ModelError, match=r"tuner.length 40 leaves no positions for the text"):
        backbone(folders["bert"], tuner=TunerConfig(kind="soft_prompt", length=40))


@pytest.mark.parametrize(("family", "left"), [("bert", 40), ("llama", 37)])
def test_a_late_prompt_takes_positions_where_layers_have_them(folders, family, left):
    late = TunerConfig(kind="late_prompt", length=LENGTH, depth=1, generator="none")
    assert backbone(folders[family], tuner=late).max_tokens == left
    assert backbone(folders[family], tuner=SOFT).max_tokens == 37
