"""Tiny random models of every supported family, batches for them, and their internals as the tests need them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import sweep
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.t5 import modeling_t5

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from clients.tuners.word_vectors import WordVectors
from fedsim.core.tokens import TokenBatch
from fedsim.core.words import LabelWords

VOCABULARY = 97
PAD = 1
LABEL_WORDS = np.array([11, 42, 7], dtype=np.int64)
PROMPT_LENGTH = 4

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
_ENCODER = _COMMON | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = _COMMON | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, dict[str, object]] = {
    "bert": _ENCODER | {"type_vocab_size": 2},
    "roberta": _ENCODER | {"type_vocab_size": 1},
    "xlm-roberta": _ENCODER | {"type_vocab_size": 1},
    "camembert": _ENCODER | {"type_vocab_size": 1},
    "gpt2": _COMMON
    | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    | {"attn_pdrop": 0.0},
    "llama": _DECODER | {"tie_word_embeddings": False},
    "mistral": _DECODER | {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": _DECODER | {"tie_word_embeddings": True},
    "qwen3": _DECODER | {"tie_word_embeddings": True, "head_dim": 16},
    "electra": _ENCODER | {"embedding_size": 32},
    "distilbert": _COMMON
    | {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40}
    | {"dropout": 0.0, "attention_dropout": 0.0},
    "modernbert": _COMMON
    | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    | {"max_position_embeddings": 40, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 128},
    "gpt_neox": _COMMON
    | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    | {"max_position_embeddings": 40}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "opt": _COMMON
    | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32}
    | {"max_position_embeddings": 40, "dropout": 0.0},
    "phi3": _DECODER | {"sliding_window": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "smollm3": _DECODER
    | {"no_rope_layer_interval": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "olmo2": _DECODER,
    "olmo": _DECODER,
    "olmo3": _DECODER | {"sliding_window": 40, "layer_types": _MIXED},
    "granite": _DECODER
    | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.4},
    "qwen3_moe": _DECODER
    | {"head_dim": 16, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "gemma": _DECODER | {"head_dim": 12},
    "gemma3_text": _DECODER | {"head_dim": 12, "sliding_window": 40, "sliding_window_pattern": 2},
}
WITHOUT_SDPA: dict[str, dict[str, object]] = {
    "gemma2": _DECODER
    | {"head_dim": 12, "attn_logit_softcapping": 2.0, "sliding_window": 40, "tie_word_embeddings": True},
    "gpt_oss": _DECODER
    | {"head_dim": 12, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 40, "layer_types": _MIXED}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
"""Families that run with eager attention alone: the contract's tests have them too."""
WITHOUT_PREFIX: dict[str, dict[str, object]] = {
    # As DeBERTa-v3, but with so few buckets that texts of these tests use all.
    "deberta-v2": _ENCODER
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 6, "share_att_key": True}
    | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
}
"""Families whose attention is out of the prefix's reach: test_relative_attention.py is their contract."""
_T5 = (
    {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": 2, "decoder_start_token_id": PAD}
    | {"d_model": 32, "num_layers": 3, "num_heads": 4, "d_kv": 12, "d_ff": 48, "dropout_rate": 0.0}
    # So few that texts of these tests use all.
    | {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 16}
)
ENCODERS_ALONE: dict[str, dict[str, object]] = {
    "t5": _T5 | {"feed_forward_proj": "relu"},
    "mt5": _T5 | {"feed_forward_proj": "gated-gelu"},
    "umt5": _T5 | {"feed_forward_proj": "gated-gelu"},
}
"""Encoders without an LM head: test_position_bias.py and test_encoders_alone.py are their contract."""
if not hasattr(modeling_t5, "eager_attention_forward"):  # before transformers 5.15.0, with which they are refused
    ENCODERS_ALONE = {}
WITH_LM_HEAD = CONFIGS | WITHOUT_SDPA | WITHOUT_PREFIX
"""All families but these."""
TINY = WITH_LM_HEAD | ENCODERS_ALONE
"""All families."""
ESSENTIAL = ("bert", "roberta", "gpt2", "llama", "qwen3")
"""One family of each way to attend, to count positions and to normalise; the others are variants of these."""
UNCACHED = {
    "distilbert": {"k_lin": (0, -1), "v_lin": (-1, 0)},
    "modernbert": {"Wqkv": (1, 2)},
}
"""Families without a cache of keys and values: the maps that make them, and which part of their output keys and values are."""
families = pytest.mark.parametrize("family", sweep(CONFIGS, ESSENTIAL))
all_families = pytest.mark.parametrize("family", sweep(WITH_LM_HEAD, (*ESSENTIAL, "deberta-v2")))
tuned_families = pytest.mark.parametrize("family", sweep(TINY, (*ESSENTIAL, "deberta-v2", *ENCODERS_ALONE)))
"""All families, where it does not matter what reads them."""
every_family = pytest.mark.parametrize("family", (*CONFIGS, *WITHOUT_SDPA))


def tiny_model(family: str, kind: str | None = None, **changes: object) -> PreTrainedModel:
    """Return a model whose every parameter is random and large enough for mistakes to show."""
    row = FAMILIES[family]
    kind = kind or row.lm_kind
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = row.model_class(kind)(row.config(TINY[family] | changes), **row.arguments(kind))
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if name.endswith("SelfAttention.q.weight"):  # T5's scores are not scaled: its queries are
                parameter.data.mul_(0.25)
    return model.eval()


def doubled(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model in float64, its experts one by one: torch's grouped products are not for float64."""
    model.config._experts_implementation = "eager"
    return model.double()


def runnable(family: str, attention: str) -> str:
    """Return the attention if the family can run with it, else the one that it has."""
    return attention if attention in FAMILIES[family].attentions else FAMILIES[family].attentions[0]


def settled(family: str) -> str:
    """Return the number format in which rounding does not show: T5's scores, which are not scaled, enlarge it."""
    return "float64" if family in ENCODERS_ALONE else "float32"


def default_head(family: str) -> HeadConfig:
    """Return the head that reads a family unless told otherwise."""
    return HeadConfig(kind="classifier") if family in ENCODERS_ALONE else HeadConfig()


def model_type(path: str | Path) -> str:
    return json.loads((Path(path) / "config.json").read_text())["model_type"]


def shared(model: PreTrainedModel, folder: Path, **config: object) -> SharedWeights:
    """Save a model and load its weights as a run does."""
    family = model.config.model_type
    config = {"head": default_head(family)} | config
    return load_shared_weights(ModelConfig(path=save(model, folder), attention=runnable(family, "sdpa"), **config))


class SharedByFamily(dict[str, SharedWeights]):
    """Weights of each family's tiny model, made when they are asked for."""

    def __init__(self, folder: Path, **config: object) -> None:
        super().__init__()
        self._folder, self._config = folder, config

    def __missing__(self, family: str) -> SharedWeights:
        self[family] = shared(tiny_model(family), self._folder / family, **self._config)
        return self[family]


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def backbone(
    path: str | Path | SharedWeights,
    head: HeadConfig | None = None,
    attention: str = "sdpa",
    position_offset: str = "none",
    prompt_length: int = PROMPT_LENGTH,
    dtype: str = "float32",
    tuner: TunerConfig | None = None,
    autocast: str = "off",
    words: LabelWords | None = None,
) -> Backbone:
    name = "shared" if isinstance(path, SharedWeights) else str(path)
    family = path.family.name if isinstance(path, SharedWeights) else model_type(path)
    attention = runnable(family, attention)
    config = ModelConfig(
        path=name, head=head or default_head(family), attention=attention, dtype=dtype, autocast=autocast
    )
    weights = path if isinstance(path, SharedWeights) else load_shared_weights(config)
    prompt = PromptConfig(length=prompt_length, position_offset=position_offset)
    words_C = LABEL_WORDS if config.head.kind == "verbalizer" and words is None else None
    made = make_tuner(tuner or TunerConfig(), prompt, weights.family).knowing(
        WordVectors(weights, frozenset(), VOCABULARY, words_C if words is None else words.ids_Q), 0
    )
    return Backbone.build(weights, config, made, len(LABEL_WORDS), words_C, "cpu", words=words)


def batch(padding: str = "right", num_examples: int = 4, num_tokens: int = 9, seed: int = 0) -> TokenBatch:
    """Return a batch with padding on the ``right``, on the ``left``, or ``none`` at all; ``single``: one token each."""
    rng = np.random.default_rng(seed)
    num_tokens = 1 if padding == "single" else num_tokens
    ids = rng.integers(3, VOCABULARY, (num_examples, num_tokens))
    mask = np.ones_like(ids)
    if padding in ("right", "left"):
        for row in range(1, num_examples):
            hidden = slice(num_tokens - row, None) if padding == "right" else slice(0, row)
            mask[row, hidden] = 0
    ids[mask == 0] = PAD
    last = num_tokens - 1 - mask[:, ::-1].argmax(1)
    return TokenBatch(ids, mask, None, last, rng.integers(0, len(LABEL_WORDS), num_examples))


def widened(data: TokenBatch, more: int) -> TokenBatch:
    """Return the batch with more padding on the right."""
    ids = np.pad(data.input_ids_BT, ((0, 0), (0, more)), constant_values=PAD)
    return replace(data, input_ids_BT=ids, attention_mask_BT=np.pad(data.attention_mask_BT, ((0, 0), (0, more))))


def prompts(
    model: Backbone, layers: tuple[int, ...], clients: int = 1, seed: int = 0, length: int | None = None
) -> Tensor:
    g = model.geometry
    length = g.prompt_length if length is None else length
    generator = torch.Generator().manual_seed(seed)
    shape = (clients, len(layers), 2, g.num_kv_heads, length, g.head_dim)
    return torch.randn(shape, generator=generator).requires_grad_()


def plain_positions(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Positions of a text without a prompt, by transformers' own function for the families that have one."""
    embeddings = getattr(model.base_model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return embeddings.create_position_ids_from_input_ids(ids_BT, PAD)
    return torch.arange(ids_BT.shape[1]).expand(len(ids_BT), -1)


def cache_oracle(
    model: PreTrainedModel, data: TokenBatch, prompt_LKHPD: Tensor, layers: tuple[int, ...], position_offset: str
) -> list[Tensor]:
    """Return all hidden states of transformers' own way: a key/value cache filled with the prompts.

    A layer without a prompt gets one as well, of zeros, and hides it by its mask.
    """
    if model.config.model_type in UNCACHED:
        return _token_oracle(model, data, prompt_LKHPD, layers, position_offset)
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    length = prompt_LKHPD.shape[3]
    cache = DynamicCache()
    for layer in range(model.config.num_hidden_layers):
        pair = prompt_LKHPD[layers.index(layer)] if layer in layers else torch.zeros_like(prompt_LKHPD[0])
        cache.update(*pair.unsqueeze(1).expand(-1, len(ids), -1, -1, -1), layer)
    handles = [
        module.register_forward_pre_hook(_hide(length), with_kwargs=True)
        for module in attention_modules(model)
        if module.layer_idx not in layers
    ]
    try:
        output = model.base_model(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(len(ids), length, dtype=torch.int64), mask], dim=1),
            position_ids=None if position_offset == "paper" else plain_positions(model, ids),
            past_key_values=cache,
            use_cache=False,
            output_hidden_states=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    return list(output.hidden_states)


def _token_oracle(
    model: PreTrainedModel, data: TokenBatch, prompt_LKHPD: Tensor, layers: tuple[int, ...], position_offset: str
) -> list[Tensor]:
    """Return all hidden states of a model without a cache: tokens before the text, whose keys and values are the prompts.

    They have position 0, so that their keys are not turned.
    """
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    length = prompt_LKHPD.shape[3]
    positions = plain_positions(model, ids) + (length if position_offset == "paper" else 0)
    before = torch.zeros(len(ids), length, dtype=torch.int64)
    handles = []
    for layer, attention in enumerate(attention_modules(model)):
        if layer in layers:
            flat_KPF = prompt_LKHPD[layers.index(layer)].transpose(1, 2).flatten(2)
            for path, part in UNCACHED[model.config.model_type].items():
                hook = _written(length, part, flat_KPF)
                handles.append(attention.get_submodule(path).register_forward_hook(hook))
        else:
            handles.append(attention.register_forward_pre_hook(_hide(length), with_kwargs=True))
    try:
        output = model.base_model(
            input_ids=torch.cat([torch.full_like(before, 3), ids], dim=1),
            attention_mask=torch.cat([torch.ones_like(before), mask], dim=1),
            position_ids=torch.cat([before, positions], dim=1),
            output_hidden_states=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    return [hidden[:, length:] for hidden in output.hidden_states]


def _written(length: int, part: tuple[int, ...], flat_KPF: Tensor):
    """Return a hook that writes keys and values over the first rows of a map's output."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        rows = output[:, :length].unflatten(2, (-1, flat_KPF.shape[2])).clone()
        for which, place in enumerate(part):
            if place >= 0:
                rows[:, :, place] = flat_KPF[which]
        return torch.cat([rows.flatten(2), output[:, length:]], dim=1)

    return hook


def _hide(length: int):
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = kwargs["attention_mask"]
        assert mask is not None, "the oracle needs a mask; give it a padded batch"
        narrow = mask.clone()
        narrow[..., :length] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": narrow}

    return hook


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    path = FAMILIES[model.config.model_type].attention
    if path is not None:
        return [layer.get_submodule(path) for layer in transformer_layers(model)]
    numbered = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    return [module for module in numbered if "Attention" in type(module).__name__]


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers)


def same_at_tokens(actual: list[Tensor], expected: list[Tensor], data: TokenBatch, tolerance: float = 2e-5) -> None:
    assert len(actual) == len(expected)
    token_BT = torch.from_numpy(data.attention_mask_BT).bool()
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine[token_BT], theirs[token_BT], rtol=tolerance, atol=tolerance)
