"""The rows of the supported model families."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clients.backbone.families import FAMILIES, Family
from fedsim.core.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = deferred("torch")
    nn = deferred("torch.nn")


def _positions(vectors_BPD: Tensor, first: int = 0) -> Tensor:
    return torch.arange(first, first + vectors_BPD.shape[1], device=vectors_BPD.device).unsqueeze(0)


def _bert_transform(model: Any, hidden_BD: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden_BD)


def _roberta_transform(model: Any, hidden_BD: Tensor) -> Tensor:
    return model.lm_head.layer_norm(nn.functional.gelu(model.lm_head.dense(hidden_BD)))


def _electra_transform(model: Any, hidden_BD: Tensor) -> Tensor:
    return model.generator_predictions(hidden_BD)


def _distilbert_transform(model: Any, hidden_BD: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden_BD)))


def _modernbert_transform(model: Any, hidden_BD: Tensor) -> Tensor:
    return model.head(hidden_BD)


def _granite_transform(model: Any, hidden_BD: Tensor) -> Tensor:
    return hidden_BD / model.config.logits_scaling  # its LM head, which has no bias, divides scores by it


def _bert_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    embeddings = base.embeddings
    first = 0 if embeddings.position_embeddings.padding_idx is None else embeddings.position_embeddings.padding_idx + 1
    types_BP = torch.zeros(vectors_BPD.shape[:2], dtype=torch.int64, device=vectors_BPD.device)
    return embeddings(inputs_embeds=vectors_BPD, position_ids=_positions(vectors_BPD, first), token_type_ids=types_BP)


def _distilbert_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return base.embeddings(None, vectors_BPD, _positions(vectors_BPD))


def _deberta_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return base.embeddings(inputs_embeds=vectors_BPD, position_ids=_positions(vectors_BPD))


def _modernbert_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return base.embeddings(inputs_embeds=vectors_BPD)


def _gpt2_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return base.drop(vectors_BPD + base.wpe(_positions(vectors_BPD)[0]))


def _gpt_neox_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return base.emb_dropout(vectors_BPD)


def _granite_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return vectors_BPD * base.embedding_multiplier


def _opt_embed(base: Any, vectors_BPD: Tensor) -> Tensor:
    return vectors_BPD + base.decoder.embed_positions(None, position_ids=_positions(vectors_BPD))


def _encoder(
    name: str, title: str, transform: Callable[[Any, Tensor], Tensor], *, skip: bool = False, pools: bool = True
) -> Family:
    """Return the row of a relative of BERT."""
    return Family(
        name,
        title,
        "masked_lm",
        "ForMaskedLM",
        {"add_pooling_layer": False} if pools else {},
        skip,
        transform,
        embed=_bert_embed,
        layers="encoder.layer",
        behind_attention="attention.output",
        lora_targets=("query", "value"),
        ia3_targets=("key", "value", "output.dense"),
        ia3_feedforward=("output.dense",),
        sublayer_outputs=("attention.output.dropout", "output.dropout"),
        before_activation=("intermediate.dense",),
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
    )


_IA3_QUERIES = ("q_proj", "v_proj", "down_proj")
"""PEFT scales queries here, not keys."""
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

_BOTH_SIDES = {
    "use_bidirectional_attention": "attention to both sides is that of is_causal: false; set it to false, or use another model"
}

_ENCODERS = (
    _encoder("bert", "Bert", _bert_transform),
    _encoder("roberta", "Roberta", _roberta_transform, skip=True),
    _encoder("xlm-roberta", "XLMRoberta", _roberta_transform, skip=True),
    _encoder("camembert", "Camembert", _roberta_transform, skip=True),
    _encoder("electra", "Electra", _electra_transform, pools=False),
    Family(
        "distilbert",
        "DistilBert",
        "masked_lm",
        "ForMaskedLM",
        head_transform=_distilbert_transform,
        embed=_distilbert_embed,
        layers="transformer.layer",
        has_cache=False,
        attention="attention",
        lora_targets=("q_lin", "v_lin"),
        ia3_targets=("k_lin", "v_lin", "lin2"),
        ia3_feedforward=("lin2",),
        sublayer_outputs=("attention.out_lin", "ffn.dropout"),
        norms=("sa_layer_norm", "output_layer_norm"),
    ),
    Family(
        "deberta-v2",
        "DebertaV2",
        "masked_lm",
        "ForMaskedLM",
        head_transform=_bert_transform,
        embed=_deberta_embed,
        layers="encoder.layer",
        has_cache=False,
        attention="attention.self",
        relative_attention=True,
        attentions=("eager",),
        lora_targets=("query_proj", "value_proj"),
        ia3_targets=("key_proj", "value_proj", "output.dense"),
        ia3_feedforward=("output.dense",),
        sublayer_outputs=("attention.output.dropout", "output.dropout"),
        before_activation=("intermediate.dense",),
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        refused={
            "conv_kernel_size": "a convolution over neighbouring tokens is not supported; use a DeBERTa without one, such as v3"
        },
    ),
    Family(
        "modernbert",
        "ModernBert",
        "masked_lm",
        "ForMaskedLM",
        head_transform=_modernbert_transform,
        embed=_modernbert_embed,
        has_cache=False,
        lora_targets=("Wqkv",),
        ia3_targets=("Wqkv", "mlp.Wo"),
        ia3_feedforward=("mlp.Wo",),
        sublayer_outputs=("attn.out_drop", "mlp.Wo"),
        norms=("mlp_norm",),  # the lowest layer has none before its attention
        window="by layer",
        window_argument=1,
        rotary_by_layer=True,
    ),
)

_DECODERS = (
    Family(
        "gpt2",
        "GPT2",
        "causal_lm",
        "LMHeadModel",
        embed=_gpt2_embed,
        layers="h",
        lora_targets=("c_attn",),
        ia3_targets=("c_attn", "mlp.c_proj"),
        ia3_feedforward=("mlp.c_proj",),
        sublayer_outputs=("attn.resid_dropout", "mlp.dropout"),
        norms=("ln_1", "ln_2"),
        transposed_weights=True,
    ),
    Family(
        "gpt_neox",
        "GPTNeoX",
        "causal_lm",
        embed=_gpt_neox_embed,
        lora_targets=("query_key_value",),
        ia3_targets=("query_key_value", "dense_4h_to_h"),
        ia3_feedforward=("dense_4h_to_h",),
        sublayer_outputs=("post_attention_dropout", "post_mlp_dropout"),
        partial_rotary=True,
    ),
    Family(
        "opt",
        "OPT",
        "causal_lm",
        embed=_opt_embed,
        layers="decoder.layers",
        ia3_targets=("q_proj", "k_proj", "fc2"),
        ia3_feedforward=("fc2",),
        sublayer_outputs=("self_attn.out_proj", "fc2"),
        norms=("self_attn_layer_norm", "final_layer_norm"),
        refused={"layerdrop": "layers that are left out by chance are not supported; set it to 0.0"},
    ),
    Family("llama", "Llama", "causal_lm"),
    Family("mistral", "Mistral", "causal_lm", window="all"),
    Family(
        "phi3",
        "Phi3",
        "causal_lm",
        lora_targets=("qkv_proj",),
        ia3_targets=("qkv_proj", "down_proj"),
        sublayer_outputs=("resid_attn_dropout", "resid_mlp_dropout"),
        window="all",
        partial_rotary=True,
    ),
    Family("qwen2", "Qwen2", "causal_lm", window="by layer", ia3_targets=_IA3_QUERIES),
    Family("qwen3", "Qwen3", "causal_lm", window="by layer", ia3_targets=_IA3_QUERIES),
    Family("smollm3", "SmolLM3", "causal_lm", window="by layer"),
    Family("olmo2", "Olmo2", "causal_lm", norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    Family("olmo", "Olmo", "causal_lm"),
    Family(
        "olmo3",
        "Olmo3",
        "causal_lm",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        window="by layer",
        rotary_by_layer=True,
        layers_by_index=True,
    ),
    Family("granite", "Granite", "causal_lm", head_transform=_granite_transform, embed=_granite_embed),
    Family(
        "qwen3_moe",
        "Qwen3Moe",
        "causal_lm",
        ia3_targets=("q_proj", "v_proj"),  # the maps of experts lie in one array
        ia3_feedforward=(),
        sublayer_outputs=("self_attn.o_proj", "mlp"),
        window="all",
    ),
    Family(
        "gpt_oss",
        "GptOss",
        "causal_lm",
        ia3_targets=("k_proj", "v_proj"),
        ia3_feedforward=(),
        sublayer_outputs=("self_attn.o_proj", "mlp"),
        window="by layer",
        layers_by_index=True,
        attentions=("eager",),  # sdpa has no sinks
    ),
    Family("gemma", "Gemma", "causal_lm", ia3_targets=_IA3_QUERIES, refused=_BOTH_SIDES, scaled_embeddings=True),
    Family(
        "gemma2",
        "Gemma2",
        "causal_lm",
        ia3_targets=_IA3_QUERIES,
        norms=_GEMMA_NORMS,
        window="by layer",
        refused=_BOTH_SIDES,
        attentions=("eager",),  # sdpa cannot bound scores (attn_logit_softcapping)
        scaled_embeddings=True,
    ),
    Family(
        "gemma3_text",
        "Gemma3",
        "causal_lm",
        ia3_targets=_IA3_QUERIES,
        norms=_GEMMA_NORMS,
        window="by layer",
        refused=_BOTH_SIDES,
        part="Text",
        rotary_by_layer=True,
        layers_by_index=True,
        scaled_embeddings=True,
    ),
)

for _family in (*_ENCODERS, *_DECODERS):
    FAMILIES.register(_family.name)(_family)
