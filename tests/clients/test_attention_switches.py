"""Every switch of a config.json that changes what attention sees, what a pass writes, or whom a token depends on.

A switch is right on all ways through the backbone, with transformers itself as the oracle, or refused with a sentence. The
rows here are those of the tables in docs/models.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from bias_switches import BIASED, OF_THE_DECODER
from relative_switches import RELATIVE
from tiny_models import (
    CONFIGS,
    ESSENTIAL,
    LABEL_WORDS,
    PAD,
    PROMPT_LENGTH,
    TINY,
    UNCACHED,
    VOCABULARY,
    attention_modules,
    backbone,
    batch,
    cache_oracle,
    families,
    prompts,
    runnable,
    same_at_tokens,
    save,
    tiny_model,
)
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig
from clients.tuners import packed_prefix as packing
from fedsim.core.errors import ModelError
from fedsim.core.tokens import TokenBatch, TokenTable

SKIP_PADDING = ("roberta", "xlm-roberta", "camembert")
ENCODERS = ("bert", *SKIP_PADDING, "electra", "distilbert", "modernbert")
CHUNKING = ENCODERS[:-1]
WHOLE = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "olmo", "olmo2", "granite", "smollm3", "gemma")
"""Decoders whose attention turns heads as a whole, all layers alike."""
ROTARY = (*WHOLE, "phi3", "gpt_neox")
ROPED = (*WHOLE, "gpt_neox")
"""Those with all kinds of rotary positions; Phi-3 has two."""
BY_LAYER = ("gemma3_text", "modernbert", "olmo3")
EAGER = ("gemma2", "gpt_oss")
"""Those with eager attention alone."""
DECODERS = ("gpt2", "opt", "gemma3_text", "olmo3", *EAGER, *ROTARY)
QWEN = ("qwen2", "qwen3")
GROUPED = (*WHOLE, "phi3", "gemma3_text", "olmo3", *EAGER)
HEAD_SIZES = {"qwen3": 16, "qwen3_moe": 16, "gemma": 12}
"""Sizes of a head in the tiny models; 8 in the others."""
EXPERTS = ("qwen3_moe", "gpt_oss")
ALL_LAYERS = (0, 1, 2)
PROMPTED = ((0, 2), (2,))
POOLED = HeadConfig(kind="classifier", pooling="mean")
"""A head that every token influences."""
LENGTHS = np.array([2, 4, 5, 9, 10])
TOLERANCE = 1e-5
SHORT = 15
"""Longest text of the longrope models here, prompt included."""


# -- the rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switch:
    """A switch that is accepted."""

    families: tuple[str, ...]
    values: dict[str, Any]
    """What config.json says."""
    shapes: dict[str, Any] = field(default_factory=dict)
    """Settings with which the weights must be made."""
    changes: bool = True
    """Whether it changes results."""
    attentions: tuple[str, ...] = ("sdpa",)


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **values}}


def rope_by_layer(**values: Any) -> dict[str, Any]:
    """The layers that slide are as they were."""
    full, sliding = {"rope_theta": 10000.0, **values}, {"rope_type": "default", "rope_theta": 10000.0}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def long_rope(pairs: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(pairs)], "long_factor": [4.0] * pairs}
    longest = {"original_max_position_embeddings": SHORT}  # a Phi-3 reads it from both places
    return rope(rope_type="longrope", factor=4.0, **longest, **factors) | longest


def windowed(**values: Any) -> dict[str, Any]:
    return {"sliding_window": 3, "use_sliding_window": True, "layer_types": None, **values}


BOTH = ("sdpa", "eager")
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 20}
ACCEPTED: dict[str, Switch] = {
    "causal decoder": Switch(DECODERS, {"is_causal": True}, changes=False),
    "bidirectional decoder": Switch(DECODERS, {"is_causal": False}, attentions=BOTH),
    "bidirectional encoder": Switch(ENCODERS, {"is_causal": False}, changes=False),
    "encoder with is_causal of null": Switch(("bert",), {"is_causal": None}, changes=False),
    "window": Switch(("mistral",), {"sliding_window": 3}, attentions=BOTH),
    "window to both sides": Switch(("mistral",), {"sliding_window": 3, "is_causal": False}, attentions=BOTH),
    "window above a layer": Switch(QWEN, windowed(max_window_layers=1)),
    "window above a layer, both sides": Switch(QWEN, windowed(max_window_layers=1, is_causal=False), attentions=BOTH),
    "window by layer": Switch(QWEN, windowed(layer_types=MIXED)),
    "window by layer, both sides": Switch(QWEN, windowed(layer_types=MIXED, is_causal=False)),
    "window not used": Switch(QWEN, {"sliding_window": 3, "use_sliding_window": False}, changes=False),
    "rope linear": Switch(ROPED, rope(rope_type="linear", factor=4.0)),
    # Up to max_position_embeddings it is the default; longer texts have no positions.
    "rope dynamic": Switch(WHOLE, rope(rope_type="dynamic", factor=4.0), changes=False),
    "rope yarn": Switch(ROPED, rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=10)),
    "rope llama3": Switch(ROPED, rope(rope_type="llama3", **LLAMA3)),
    "rope longrope": Switch(("llama", "mistral", "qwen2", "olmo", "olmo2", "granite", "smollm3", "phi3"), long_rope(4)),
    "rope longrope, larger heads": Switch(("qwen3", "qwen3_moe"), long_rope(8)),
    "rope by layer, linear": Switch(BY_LAYER, rope_by_layer(rope_type="linear", factor=4.0)),
    "rope by layer, yarn": Switch(
        ("gemma3_text", "olmo3"), rope_by_layer(rope_type="yarn", factor=4.0, original_max_position_embeddings=10)
    ),
    "rope of a part of a head": Switch(("phi3",), rope(rope_type="default", partial_rotary_factor=0.5)),
    "rope of a smaller part of a head": Switch(("gpt_neox",), rope(rope_type="default", partial_rotary_factor=0.25)),
    "rope of a part of a head, linear": Switch(
        ("gpt_neox",), rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.25)
    ),
    "layers without positions": Switch(("smollm3",), {"no_rope_layers": [1, 1, 0]}),
    "rope proportional": Switch(WHOLE, rope(rope_type="proportional", factor=2.0, partial_rotary_factor=0.5)),
    "rope as it was written before": Switch(
        ROPED, {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    ),
    "rope default turns heads as a whole": Switch(WHOLE, rope(partial_rotary_factor=0.5), changes=False),
    "one key/value head": Switch(GROUPED, {}, {"num_key_value_heads": 1}),
    "a key/value head each": Switch(GROUPED, {}, {"num_key_value_heads": 4}),
    "size of a head": Switch((*WHOLE, "gemma3_text", "olmo3", *EAGER), {}, {"head_dim": 20}),
    "attention_bias": Switch(
        (
            *("llama", "qwen3", "olmo2", "smollm3", "gemma", "gemma3_text", "modernbert"),
            *("olmo", "olmo3", "granite", "qwen3_moe", "gemma2"),
        ),
        {},
        {"attention_bias": True},
    ),
    "no attention_bias": Switch(("gpt_neox", "gpt_oss"), {}, {"attention_bias": False}),
    "attention_bias that is not read": Switch(
        ("bert", "gpt2", "mistral", "qwen2", "phi3", "opt"), {"attention_bias": True}, changes=False
    ),
    "pad_token_id of null": Switch(("bert", *DECODERS), {"pad_token_id": None}, changes=False),
    "window of all layers of a Phi-3": Switch(("phi3",), {"sliding_window": 3}, attentions=BOTH),
    "window by layer of a Gemma 3": Switch(("gemma3_text",), {"sliding_window": 3}, attentions=BOTH),
    "window by layer of a Gemma 3, both sides": Switch(("gemma3_text",), {"sliding_window": 3, "is_causal": False}),
    "all layers of a Gemma 3 slide": Switch(
        ("gemma3_text",), {"sliding_window": 3, "layer_types": ["sliding_attention"] * 3}
    ),
    "window by layer of a ModernBERT": Switch(("modernbert",), {"local_attention": 6}, attentions=BOTH),
    "all layers of a ModernBERT see all": Switch(("modernbert",), {"layer_types": ["full_attention"] * 3}),
    "window by layer of a SmolLM3": Switch(
        ("smollm3",), {"sliding_window": 3, "use_sliding_window": True, "layer_types": MIXED}, attentions=BOTH
    ),
    "query_pre_attn_scalar": Switch(("gemma3_text", "gemma2"), {"query_pre_attn_scalar": 4}),
    "window by layer, eager": Switch(EAGER, {"sliding_window": 3, "layer_types": MIXED}),
    "window by layer, eager, both sides": Switch(EAGER, {"sliding_window": 3, "layer_types": MIXED, "is_causal": False}),
    "window of all layers, eager": Switch(EAGER, {"sliding_window": 3, "layer_types": ["sliding_attention"] * 3}),
    "no window, eager": Switch(EAGER, {"layer_types": ["full_attention"] * 3}, changes=False),
    "rope linear, eager": Switch(EAGER, rope(rope_type="linear", factor=4.0)),
    "rope yarn, eager": Switch(EAGER, rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=10)),
    "rope yarn of a gpt-oss": Switch(
        ("gpt_oss",),
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=10, beta_fast=32.0, beta_slow=1.0, truncate=False),
    ),
    "rope llama3, eager": Switch(EAGER, rope(rope_type="llama3", **LLAMA3)),
    "attn_logit_softcapping": Switch(("gemma2",), {"attn_logit_softcapping": 1.0}),
    "window by layer of an OLMo 3": Switch(("olmo3",), {"sliding_window": 3}, attentions=BOTH),
    "window by layer of an OLMo 3, both sides": Switch(("olmo3",), {"sliding_window": 3, "is_causal": False}, attentions=BOTH),
    "window of all layers of a mixture": Switch(
        ("qwen3_moe",), {"sliding_window": 3, "use_sliding_window": True}, attentions=BOTH
    ),
    "window of a mixture, not used": Switch(("qwen3_moe",), {"sliding_window": 3}, changes=False),
    "clip_qkv": Switch(("olmo",), {"clip_qkv": 0.5}, attentions=BOTH),
    "multipliers": Switch(("granite",), {"embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "attention_multiplier": Switch(("granite",), {"attention_multiplier": 0.1}, attentions=BOTH),
    "logits_scaling does not reach a classifier": Switch(("granite",), {"logits_scaling": 8.0}, changes=False),
    "experts that a token visits": Switch(EXPERTS, {"num_experts_per_tok": 3}),
    "weights of experts as they are": Switch(("qwen3_moe",), {"norm_topk_prob": False}),
    "layers without experts": Switch(("qwen3_moe",), {}, {"mlp_only_layers": [1]}),
    "every second layer with experts": Switch(("qwen3_moe",), {}, {"decoder_sparse_step": 2}),
    "what experts compute": Switch(("gpt_oss",), {"swiglu_alpha": 1.0, "swiglu_limit": 0.5}),
    "a loss that balances experts": Switch(
        EXPERTS, {"output_router_logits": True, "router_aux_loss_coef": 0.5}, changes=False
    ),
    "parts of a layer one after another": Switch(("gpt_neox",), {"use_parallel_residual": False}),
    "norms behind": Switch(("opt",), {}, {"do_layer_norm_before": False}),
    "no biases": Switch(("opt",), {}, {"enable_bias": False}),
    "norms without numbers": Switch(("opt",), {}, {"layer_norm_elementwise_affine": False}),
    "no norm behind the layers": Switch(("opt",), {}, {"_remove_final_layer_norm": True}),
    "smaller word embeddings": Switch(("electra",), {}, {"embedding_size": 16}),
    "norms with biases": Switch(("modernbert",), {}, {"norm_bias": True}),
    "sine positions": Switch(("distilbert",), {"sinusoidal_pos_embds": True}, changes=False),
    "scale_attn_weights": Switch(("gpt2",), {"scale_attn_weights": False}),
    "scale_attn_by_inverse_layer_idx": Switch(("gpt2",), {"scale_attn_by_inverse_layer_idx": True}),
    "attention_dropout": Switch(
        (*ROTARY, *EAGER, "olmo3", "opt", "gemma3_text", "modernbert", "distilbert"), {"attention_dropout": 0.5}, changes=False
    ),
    "attention_dropout of null": Switch(("llama",), {"attention_dropout": None}, changes=False),
    "layerdrop of zero": Switch(("opt",), {"layerdrop": 0.0}, changes=False),
    "chunk_size_feed_forward": Switch(CHUNKING, {"chunk_size_feed_forward": 3}, changes=False),
    "what a pass hands back, and by which code": Switch(
        (*CONFIGS, *EAGER),
        {"output_attentions": True, "output_hidden_states": True, "tie_last_hidden_states": False, "return_dict": False}
        | {"use_cache": True, "gradient_checkpointing": True, "fusion_config": {"none": True}}
        | {"_attn_implementation": "flash_attention_2", "experts_implementation": "eager"},
        changes=False,
    ),
    "keys that no family reads": Switch(
        tuple(CONFIGS),
        {"alibi": True, "attention_chunk_size": 4, "attn_logit_softcapping": 1.0, "num_sink_tokens": 2}
        | {"pretraining_tp": 2, "pruned_heads": {"0": [1]}, "rotary_pct": 0.5, "torchscript": True},
        changes=False,
    ),
    "keys of other families": Switch(
        (*CHUNKING, "gpt2", "opt", "llama", "olmo2", "gemma", "gpt_neox"),
        {"sliding_window": 3, "use_sliding_window": True},
        changes=False,
    ),
    "is_decoder in a decoder": Switch(DECODERS, {"is_decoder": True}, changes=False),
}  # fmt: skip

REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "causal encoder": ((*ENCODERS, "deberta-v2"), {"is_causal": True}, r"sets is_causal in its .*: .* set it to false"),
    "is_causal of null": (DECODERS, {"is_causal": None}, "sets is_causal to null .* has to be true or false"),
    "is_causal of a word": (("llama",), {"is_causal": "no"}, 'sets is_causal to "no" .* has to be true or false'),
    "is_decoder": ((*ENCODERS, "deberta-v2"), {"is_decoder": True}, "sets is_decoder in its config.json"),
    "add_cross_attention": (("gpt2",), {"add_cross_attention": True}, "sets add_cross_attention"),
    "reorder_and_upcast_attn": (("gpt2",), {"reorder_and_upcast_attn": True}, "sets reorder_and_upcast_attn"),
    "relative positions": (
        ("bert",),
        {"position_embedding_type": "relative_key"},
        "has position_embedding_type 'relative_key'; only absolute",
    ),
    "alibi": (("bert",), {"position_embedding_type": "alibi"}, "has position_embedding_type 'alibi'; only absolute"),
    "layers of other shapes": (
        ("bert", "gpt2", "mistral", "qwen2"),
        {"per_layer_config": {"0": {"sliding_window": 2}}},
        "sets per_layer_config .* layers with different",
    ),
    "chunked layers": (
        (*QWEN, "olmo3", "gpt_oss"),
        {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
        "sets layer_types with 'chunked_attention' .* full_attention and sliding_attention only",
    ),
    "sliding layers without a window": (
        QWEN,
        {"layer_types": MIXED, "use_sliding_window": False},
        "sets layer_types with 'sliding_attention', but no window .* set use_sliding_window to true",
    ),
    "layer_types of a Mistral": (
        ("mistral",),
        {"layer_types": MIXED},
        "sets layer_types in its config.json: transformers then loads it as a ministral",
    ),
    "layer_types of a family whose layers are alike": (
        ("phi3", "qwen3_moe"),
        {"layer_types": MIXED},
        "sets layer_types in its config.json: all layers of a (phi3|qwen3_moe) are alike; remove it",
    ),
    "empty window": (("mistral",), {"sliding_window": 0}, "sets sliding_window to 0 "),
    "empty window by layer": (QWEN, windowed(sliding_window=0, max_window_layers=0), "sets sliding_window to 0 "),
    "key/value heads": (WHOLE, {"num_key_value_heads": 3}, "sets num_key_value_heads to 3 .* divide the 4 attention"),
    "unknown rope": (ROPED, rope(rope_type="lama3"), r"rope_type to 'lama3' \(did you mean 'llama3'\?\)"),
    "rope by layer": (
        QWEN,
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "sets rope_parameters without a rope_type .* one for all layers",
    ),
    "rope of a part of a head": (
        WHOLE,
        rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5),
        r"sets rope_type linear with partial_rotary_factor 0\.5 .* would turn (4|6|8) of the (8|12|16) numbers of a head",
    ),
    "longrope by layer": (
        ("modernbert", "olmo3"),
        rope_by_layer(
            rope_type="longrope", factor=4.0, original_max_position_embeddings=15,
            short_factor=[1.0] * 4, long_factor=[4.0] * 4,
        ),
        "sets rope_type longrope for a kind of layers",
    ),
    "attention to both sides by a key of its own": (
        ("gemma", "gemma2", "gemma3_text"),
        {"use_bidirectional_attention": True},
        "sets use_bidirectional_attention .* is_causal: false",
    ),
    "a convolution": (("deberta-v2",), {"conv_kernel_size": 3}, "sets conv_kernel_size .* a convolution over neighbouring"),
    "heads of another size": (("deberta-v2",), {"attention_head_size": 12}, "sets attention_head_size to 12 .* as wide as"),
    "an LM head of another kind": (("deberta-v2",), {"legacy": False}, "sets legacy to false .* LM head is not supported"),
    "layers left out by chance": (("opt",), {"layerdrop": 0.1}, "sets layerdrop .* set it to 0.0"),
    "projected words": (("opt",), {"word_embed_proj_dim": 16}, "sets word_embed_proj_dim to 16 .* has to be its hidden_size"),
    "rope with too few factors": (
        WHOLE,
        long_rope(3),
        "sets rope_type longrope with values that give no frequencies .* The size of tensor",
    ),
    "rope without a factor": (ROPED, rope(rope_type="linear"), r"Missing required keys in `rope_parameters`.*factor"),
    "rope with a base of zero": (WHOLE, {"rope_parameters": {"rope_theta": 0.0}}, "frequencies that are not finite"),
    "no padding token": (
        SKIP_PADDING,
        {"pad_token_id": None},
        "has pad_token_id None, but models of type .* count positions by it",
    ),
    "quantized weights": (("llama",), {"quantization_config": {"quant_method": "gptq"}}, "sets quantization_config"),
}  # fmt: skip


def rows(switches: dict[str, Any], wide_beyond_first: bool = True) -> list[Any]:
    """Return family and name of each switch; all families but the first essential one belong to the wide sweep."""
    found = []
    for name, switch in switches.items():
        families = switch.families if isinstance(switch, Switch) else switch[0]
        essential = [family for family in families if family in ESSENTIAL] or families
        for number, family in enumerate((*essential, *(each for each in families if each not in essential))):
            marks = pytest.mark.wide if number and wide_beyond_first else ()
            found.append(pytest.param(family, name, id=f"{family}-{name}", marks=marks))
    return found


# -- what each row is held against -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force several buckets even for few short examples, some with padding and some without."""
    monkeypatch.setitem(packing._MAX_PADDING_SLOTS, "cpu", 4)


def folder_of(root: Path, family: str, values: dict[str, Any], kind: str | None = "base", **shapes: Any) -> Path:
    save(tiny_model(family, kind, **shapes), root)
    config = root / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    return root


def loaded(folder: Path, family: str, head: HeadConfig = POOLED) -> SharedWeights:
    config = ModelConfig(path=str(folder), head=head, dtype="float64", attention=runnable(family, "sdpa"))
    return load_shared_weights(config)


def texts(lengths: np.ndarray) -> TokenTable:
    rng = np.random.default_rng(0)
    return TokenTable(
        ids_Z=rng.integers(3, VOCABULARY, lengths.sum()).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]),
        read_positions_N=(lengths - 1).astype(np.int32),
        labels_N=rng.integers(0, len(LABEL_WORDS), len(lengths)),
        pad_id=PAD,
    )


def head_of(model: Backbone) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn((1, *shape), generator=generator, dtype=torch.float64) for name, shape in model.head_shapes
    }


@cache
def without(family: str) -> dict[str, Tensor]:
    """Return the results of the family's tiny model without any switch, by way."""
    with TemporaryDirectory() as folder:
        path = folder_of(Path(folder), family, {})
        weights = loaded(path, family)
    return all_ways(backbone(weights, POOLED, "sdpa", "paper", dtype="float64"))


def all_ways(model: Backbone) -> dict[str, Tensor]:
    return {
        "padded": Ways(model, (0, 2)).padded()[0],
        "packed": Ways(model, (0, 2)).packed()[0],
        "cached": Ways(model, (2,)).packed(cached=True)[0],
    }


class Ways:
    """The ways through a backbone that must agree, on the same examples with the same prompts."""

    def __init__(self, model: Backbone, layers: tuple[int, ...], table: TokenTable | None = None) -> None:
        self.model, self.layers, self.head, self.table = model, layers, head_of(model), table or texts(LENGTHS)
        self.prompt = prompts(model, layers).detach().double().requires_grad_()
        self.all = np.arange(len(self.table))

    def padded(self, some: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        data = self.table.batch(self.all if some is None else some)
        return self._answer(self.model.forward(data, self.prompt, self.layers, self.head))

    def packed(self, some: np.ndarray | None = None, cached: bool = False) -> tuple[Tensor, Tensor]:
        tokens = self.table.pack(self.all if some is None else some)
        cached_ZD = self.model.cached(tokens, self.layers) if cached else None
        reading, _ = self.model.read(tokens, self.prompt, self.layers, self.head, cached_ZD=cached_ZD)
        return self._answer(reading)

    def _answer(self, reading) -> tuple[Tensor, Tensor]:
        (gradient,) = torch.autograd.grad(reading.loss_B.sum(), self.prompt)
        return reading.logits_BC.detach(), gradient

    def agree(self) -> None:
        logits, gradient = self.padded()
        others = [self.packed()] + ([self.packed(cached=True)] if min(self.layers) else [])
        for other_logits, other_gradient in others:
            close(other_logits, logits)
            close(other_gradient, gradient)
        for example in (0, 2):
            for way in (self.padded, self.packed):
                close(way(np.array([example]))[0][0], logits[example])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(theirs.abs().max())))


def oracle(folder: Path, family: str, attention: str) -> PreTrainedModel:
    """Return transformers' own model of a folder, built from its config.json."""
    row = FAMILIES[family]
    made = row.model_class("base").from_pretrained(
        folder,
        dtype=torch.float64,
        attn_implementation=attention,
        **plain_experts(family),
        **row.arguments("base"),
    )
    return made.eval()


def plain_experts(family: str) -> dict[str, str]:
    """Return the argument with which experts run in float64."""
    return {"experts_implementation": "eager"} if family in EXPERTS else {}


def own_masks(model: PreTrainedModel, data: TokenBatch) -> dict[int, Tensor]:
    """Return the mask that transformers makes for each layer of a plain model, [B, 1, T, T]."""
    masks: dict[int, Tensor] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        whole = torch.zeros((1, 1, *[data.input_ids_BT.shape[1]] * 2))  # where transformers makes no mask
        mask = kwargs["attention_mask"]
        masks[module.layer_idx] = whole if mask is None else mask

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in attention_modules(model)]
    with torch.no_grad():
        ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    return masks


def with_a_prompt_in_sight(model: PreTrainedModel, masks: dict[int, Tensor]) -> None:
    """Have a model whose windows would slide past the prompt see it in every layer, beside what it sees anyway."""

    def use(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        above = PROMPT_LENGTH if model.config.model_type in UNCACHED else 0  # rows of the prompt's own tokens
        wider = nn.functional.pad(masks[module.layer_idx], (PROMPT_LENGTH, 0, above, 0), value=0.0)
        return args, kwargs | {"attention_mask": wider}

    for module in attention_modules(model):
        module.register_forward_pre_hook(use, with_kwargs=True)


# -- the tests ---------------------------------------------------------------------------------------------------------


CHANGING = {name: switch for name, switch in ACCEPTED.items() if switch.changes}
NEUTRAL = {name: switch for name, switch in ACCEPTED.items() if not switch.changes}


@pytest.mark.parametrize(("family", "name"), rows(CHANGING))
def test_a_switch_that_is_followed_is_right_on_every_way(tmp_path, family, name):
    """Padded = packed = cached = alone = in a batch = transformers' own prefix; and shared memory is never written to."""
    switch = CHANGING[name]
    folder = folder_of(tmp_path, family, switch.values, **switch.shapes)
    weights = loaded(folder, family)
    before = weights.fingerprint()
    for attention in {runnable(family, attention) for attention in switch.attentions}:
        model = backbone(weights, POOLED, attention, "paper", dtype="float64")
        same_as_transformers(model, folder, family, attention)
        for layers in PROMPTED:
            Ways(model, layers).agree()
        if not switch.shapes:
            change = Ways(model, (0, 2)).padded()[0] - without(family)["padded"]
            assert change.abs().max() > 1e-3
    assert weights.fingerprint() == before


def same_as_transformers(model: Backbone, folder: Path, family: str, attention: str) -> None:
    prompt = prompts(model, ALL_LAYERS).detach().double()
    slides = bool(FAMILIES[family].windows(model.model.config))
    # Masks differ between batches with padding and without; where there is a window, only eager attention shows them.
    for padding in ("right", "none") if slides or not model.is_causal else ("right",):
        data, theirs = batch(padding), oracle(folder, family, "eager" if slides else attention)
        if slides:
            with_a_prompt_in_sight(theirs, own_masks(theirs, data))
        with torch.no_grad():
            expected = cache_oracle(theirs, data, prompt[0], ALL_LAYERS, "paper")
        same_at_tokens(model.hidden_states(data, prompt, ALL_LAYERS), expected, data, TOLERANCE)


@pytest.mark.parametrize(("family", "name"), rows(NEUTRAL))
def test_a_switch_that_changes_no_result_changes_none_on_any_way(tmp_path, family, name):
    folder = folder_of(tmp_path, family, NEUTRAL[name].values)
    weights = loaded(folder, family)
    before = weights.fingerprint()
    answers = all_ways(backbone(weights, POOLED, "sdpa", "paper", dtype="float64"))
    for way, logits in without(family).items():
        assert torch.equal(answers[way], logits), way
    assert weights.fingerprint() == before


@pytest.mark.parametrize(("family", "name"), rows(REFUSED, wide_beyond_first=False))
def test_a_switch_that_is_refused_is_named(tmp_path, family, name):
    _, values, sentence = REFUSED[name]
    config = FAMILIES[family].config(TINY[family]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config | values))  # it is refused before weights are looked for
    with pytest.raises(ModelError, match=sentence) as caught:
        load_shared_weights(ModelConfig(path=str(tmp_path), attention=runnable(family, "sdpa")))
    assert "config.json" in str(caught.value) or "position_embedding_type" in str(caught.value)


NO_SWITCHES = {
    *(
        "vocab_size",
        "hidden_size",
        "n_embd",
        "num_hidden_layers",
        "n_layer",
        "num_attention_heads",
        "intermediate_size",
    ),
    *("n_inner", "max_position_embeddings", "type_vocab_size", "hidden_act", "activation_function", "mlp_bias"),
    *("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "initializer_range", "pad_token_id"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    *("dim", "hidden_dim", "n_heads", "n_layers", "ffn_dim", "activation", "hidden_activation", "norm_eps"),
    *("dropout", "hidden_dropout", "embedding_dropout", "mlp_dropout"),
    *("initializer_cutoff_factor", "deterministic_flash_attn"),
    *("moe_intermediate_size", "num_experts", "num_local_experts"),
    *("d_model", "d_ff", "num_heads", "dense_act_fn", "is_gated_act"),  # the last two as feed_forward_proj says
    "standardize_rope_params",  # a method
}
"""What the families' code reads of a configuration beside the switches above: sizes, functions of one token, dropout."""


def test_every_key_that_the_families_code_reads_is_in_a_row(monkeypatch):
    """A new version of transformers that reads another key fails here, not silently."""
    code = ("transformers.models.", "transformers.masking_utils", "transformers.modeling_rope_utils")
    read: set[str] = set()
    plain_read = PreTrainedConfig.__getattribute__

    def noting(self: PreTrainedConfig, name: str) -> Any:
        frame = sys._getframe(1)
        # A configuration's own methods may look at anything; what counts is what the model does with it.
        own = isinstance(frame.f_locals.get("self"), PreTrainedConfig)
        if frame.f_globals.get("__name__", "").startswith(code) and not own:
            read.add(name)
        return plain_read(self, name)

    monkeypatch.setattr(PreTrainedConfig, "__getattribute__", noting)
    sliding = {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
    for family in TINY:
        variants = [{}, {"is_causal": False}] + ([sliding] if FAMILIES[family].window != "none" else [])
        if family in ROTARY:
            kinds = ("linear", "dynamic", "yarn", "llama3", "proportional")
            variants += [
                ACCEPTED[f"rope {kind}"].values for kind in kinds if family in ACCEPTED[f"rope {kind}"].families
            ]
            if family != "gpt_neox":
                variants.append(long_rope(HEAD_SIZES.get(family, 8) // 2))
        for values in variants:
            model, data = tiny_model(family, "base", **values), batch("right")
            ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    monkeypatch.undo()
    switches = {key for switch in ACCEPTED.values() for key in (*switch.values, *switch.shapes)}
    switches |= {key for _, values, _ in REFUSED.values() for key in values}
    switches |= {key for values in (*RELATIVE.values(), *BIASED.values(), OF_THE_DECODER) for key in values}
    assert sorted(read - switches - NO_SWITCHES) == []
    assert {"is_causal", "sliding_window", "rope_parameters", "chunk_size_feed_forward", "scale_attn_weights"} <= read


def longrope_model(tmp_path: Path, offset: str = "paper", family: str = "llama") -> Backbone:
    folder = folder_of(tmp_path, family, long_rope(HEAD_SIZES.get(family, 8) // 2))
    return backbone(
        loaded(folder, family), POOLED, position_offset=offset,
        dtype="float64",
    )  # fmt: skip


@pytest.mark.parametrize("family", (*WHOLE, "phi3"))
def test_a_text_that_would_change_the_frequencies_of_all_is_refused(tmp_path, family):
    """Beyond it, transformers would take other ones for each text of the batch."""
    long = texts(np.array([3, SHORT - PROMPT_LENGTH, SHORT - PROMPT_LENGTH + 1]))
    for offset, fits in (("paper", [0, 1]), ("none", [0, 1, 2])):
        model = longrope_model(tmp_path / offset, offset, family)
        assert model.max_tokens == SHORT - (PROMPT_LENGTH if offset == "paper" else 0)
        ways = Ways(model, (2,), long)
        ways.padded(np.array(fits))
        ways.packed(np.array(fits), cached=True)
    model = longrope_model(tmp_path / "again", "paper", family)
    ways = Ways(model, (2,), long)
    sentence = r"keeps the frequencies of its rope_type longrope for 11 beside the prompt; lower data\.max_length"
    for way in (ways.padded, ways.packed, lambda: ways.packed(cached=True)):
        with pytest.raises(ModelError, match=sentence):
            way()


def test_the_oracle_of_longrope_depends_on_company(tmp_path):
    """Why texts are refused: a short text has other hidden states beside a long one, in transformers itself."""
    folder = folder_of(tmp_path, "llama", long_rope(4))
    data = batch("none", num_examples=2, num_tokens=SHORT + 1)
    mask = data.attention_mask_BT.copy()
    mask[1, 4:] = 0
    model = oracle(folder, "llama", "sdpa")
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(mask)
    with torch.no_grad():
        beside = model(input_ids=ids, attention_mask=mask).last_hidden_state[1, :4]
        alone = model(input_ids=ids[1:, :4]).last_hidden_state[0]
    assert (beside - alone).abs().max() > 0.1


def test_a_decoder_that_sees_to_both_sides_may_be_read_at_its_first_token(tmp_path):
    first = HeadConfig(kind="classifier", pooling="first")
    for causal in (True, False):
        folder = folder_of(tmp_path / str(causal), "llama", {"is_causal": causal})
        weights = load_shared_weights(ModelConfig(path=str(folder), head=first, dtype="float64"))
        if causal:
            with pytest.raises(ModelError, match="pooling=first cannot be used with a decoder"):
                backbone(weights, first, dtype="float64")
        else:
            model = backbone(weights, first, dtype="float64")
            assert model.predicts_next and not model.is_causal
            Ways(model, (2,)).agree()


def test_a_model_that_transformers_builds_and_cannot_run_is_named(tmp_path):
    folder = folder_of(tmp_path, "bert", {}, type_vocab_size=0)
    weights = load_shared_weights(ModelConfig(path=str(folder), head=POOLED))
    with pytest.raises(
        ModelError, match=r"fails in a forward pass of one token; look into its config\.json: RuntimeError"
    ):
        backbone(weights, POOLED)


@pytest.mark.parametrize("tied", [True, False])
@families
def test_the_lm_head_is_tied_as_config_json_says(tmp_path, family, tied):
    folder = folder_of(tmp_path, family, {}, kind=None, tie_word_embeddings=tied)
    weights = load_shared_weights(ModelConfig(path=str(folder), dtype="float64"))
    assert bool(weights.aliases) == tied
    row, data = FAMILIES[family], batch("right")
    theirs = row.model_class(row.lm_kind).from_pretrained(folder, dtype=torch.float64, **plain_experts(family)).eval()
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask, use_cache=False).logits
    expected = logits[torch.arange(len(ids)), torch.from_numpy(data.read_positions_B)][:, LABEL_WORDS]
    model = backbone(weights, dtype="float64")
    close(model.forward(data, prompts(model, ()).double(), (), {}).logits_BC, expected)
