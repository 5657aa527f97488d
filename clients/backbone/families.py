"""Supported model families: one row each, with their differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.core.deferred import deferred
from fedsim.core.errors import ModelError
from fedsim.core.registry import Registry, instance_of
from fedsim.core.tokens import PackedTokens

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel
else:
    torch = deferred("torch")
    transformers = deferred("transformers")
    nn = deferred("torch.nn")

Kind = Literal["masked_lm", "causal_lm", "base"]
"""Part of a model to build: with its family's LM head, or without."""
UNLIMITED = 2**31 - 1
"""Tokens of the longest text of a model that counts no positions."""


def _as_they_are(base: Any, vectors_BPD: Tensor) -> Tensor:
    return vectors_BPD


def _untransformed(model: Any, hidden_BD: Tensor) -> Tensor:
    return hidden_BD


@dataclass(frozen=True)
class Family:
    """A transformers model type that the contract tests cover."""

    name: str
    """``model_type`` in a model's config.json."""
    title: str
    """Name of the classes in transformers, without their suffix."""
    lm_kind: Kind
    """What its LM head predicts; ``base`` if it has none, and is read by a classifier alone."""
    lm_suffix: str = "ForCausalLM"
    base_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the base model's class."""
    positions_skip_padding: bool = False
    """RoBERTa's positions: counted over tokens that are not padding, from padding_idx + 1 on."""
    head_transform: Callable[[Any, Tensor], Tensor] = _untransformed
    """The LM head's modules before its last linear layer."""
    embed: Callable[[Any, Tensor], Tensor] = _as_they_are
    """Turns input embeddings [B, P, D] at the first positions into the input of the base model's layer 0."""
    layers: str = "layers"
    """Attribute of the base model that holds its layers."""
    behind_attention: str | None = None
    """Module of a layer that combines attention output and layer input, after which every token is processed independently;
    None if a layer has no such module."""
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear maps of a layer that LoRA changes unless told otherwise, by the ends of their names, as PEFT chooses them."""
    ia3_targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    """Linear maps of a layer that IA³ scales unless told otherwise, by the ends of their names, as PEFT chooses them."""
    ia3_feedforward: tuple[str, ...] = ("down_proj",)
    """Those of ``ia3_targets`` whose input is scaled."""
    sublayer_outputs: tuple[str, str] = ("self_attn.o_proj", "mlp.down_proj")
    """Modules of a layer whose outputs are what attention and the feed-forward add to the residual, dropout included."""
    before_activation: tuple[str, ...] = ()
    """Linear maps of a layer, by the ends of their names, which only the activation function ``hidden_act`` separates from the
    next map."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """Norms of a layer over the hidden size: LayerNorm, or RMSNorm in float32 with ``variance_epsilon``."""
    transposed_weights: bool = False
    """Whether the layers' linear maps keep their weights as [in, out], not [out, in]."""
    window: Literal["none", "all", "by layer"] = "none"
    """Layers with ``sliding_window`` from config.json: by layer, as in ``layer_types``."""
    window_argument: int = 0
    """What attention is told of its window, less what the mask lets a token see to each side."""
    attentions: tuple[str, ...] = ("sdpa", "eager")
    """What ``model.attention`` can be."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Keys of config.json that must not be set, and why."""
    part: str = ""
    """Part of a larger model: stands between ``title`` and the suffix in the names of its configuration and base model."""
    has_cache: bool = True
    """Whether transformers gives it a cache of keys and values, in which PEFT puts a prefix."""
    attention: str | None = None
    """Module of a layer that attends, where transformers does not number it."""
    rotary_by_layer: bool = False
    """Whether layers have rotary angles of their own, by their type."""
    layers_by_index: bool = False
    """Whether the base model looks up what a layer needs by its place in the list."""
    partial_rotary: bool = False
    """Whether attention can turn a part of each head alone."""
    relative_attention: bool = False
    """Whether attention is DeBERTa's, out of reach of transformers' interface; see ``clients.tuners.relative_attention``."""
    scaled_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    encoder_alone: bool = False
    """Whether the model type is an encoder and a decoder, of which the encoder alone is used; a classifier reads the mean over
    a text's tokens unless told otherwise."""
    position_bias: bool = False
    """Whether attention is T5's, which adds a bias by distance and has no other positions; see
    ``clients.tuners.position_bias``."""
    overflows: bool = False
    """Whether hidden states leave the range of float16, which is then refused."""

    @property
    def predicts_next(self) -> bool:
        """Whether its LM head predicts the next token: a template is then read at its end, not at a mask."""
        return self.lm_kind == "causal_lm"

    @property
    def pooling(self) -> Literal["first", "mean", "last"]:
        """What a classifier reads with ``pooling: auto``: the token at which the LM head is read, or the mean where no token
        stands for a text.
        """
        return "mean" if self.encoder_alone else "last" if self.predicts_next else "first"

    def causal_attention(self, config: PreTrainedConfig) -> bool:
        """Return whether attention is causal: in a decoder, unless ``is_causal`` is false."""
        return self.predicts_next and bool(getattr(config, "is_causal", True))

    def windows(self, config: PreTrainedConfig) -> list[int]:
        """Return the sliding windows of layers that have one, from the lowest."""
        if self.window == "none" or config.sliding_window is None:
            return []
        kinds = config.layer_types if self.window == "by layer" else ["sliding_attention"] * config.num_hidden_layers
        return [config.sliding_window for kind in kinds if kind == "sliding_attention"]

    def config(self, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Build the model's configuration from the values of a config.json."""
        # A deep copy: some classes complete what is nested, such as rope_parameters, in place.
        return getattr(transformers, f"{self.title}{self.part}Config").from_dict(deepcopy(dict(values)))

    def model_class(self, kind: Kind) -> type[PreTrainedModel]:
        """Return the class to build."""
        base = f"{self.title}{self.part}{'EncoderModel' if self.encoder_alone else 'Model'}"
        return getattr(transformers, base if kind == "base" else f"{self.title}{self.lm_suffix}")

    def arguments(self, kind: Kind) -> dict[str, Any]:
        """Return the arguments that :meth:`model_class` takes beside the configuration."""
        return dict(self.base_arguments) if kind == "base" else {}

    def max_positions(self, config: PreTrainedConfig) -> int:
        """Return the longest text, in tokens, that the model has positions for; :meth:`limit` explains it."""
        if self.position_bias:
            return UNLIMITED
        unused = config.pad_token_id + 1 if self.positions_skip_padding else 0
        longest: int = config.max_position_embeddings - unused
        return min(longest, config.rope_parameters["original_max_position_embeddings"]) if _is_long(config) else longest

    def logit_cap(self, config: PreTrainedConfig) -> float | None:
        """Return the number c by which the LM head bounds its scores, c tanh(score / c); None for no bound."""
        return getattr(config, "final_logit_softcapping", None)

    def limit(self, config: PreTrainedConfig) -> str:
        """Return the reason for :meth:`max_positions`, phrased to fit between "the model" and "for N tokens".

        Beyond ``original_max_position_embeddings``, rope_type longrope switches frequencies; transformers does so for a whole
        batch by its longest text, so that a text's result would depend on its batch.
        """
        return "keeps the frequencies of its rope_type longrope" if _is_long(config) else "has positions"

    def position_ids(self, config: PreTrainedConfig, input_ids_BT: Tensor, offset: int) -> Tensor:
        """Return the position of each token; the first ``offset`` positions are the prompt's.

        Returns
        -------
        Tensor
            int64, [B, T] for families that skip padding, else [1, T].
        """
        if not self.positions_skip_padding:
            return torch.arange(offset, offset + input_ids_BT.shape[1], device=input_ids_BT.device).unsqueeze(0)
        token_BT = input_ids_BT.ne(config.pad_token_id).long()
        return (token_BT.cumsum(1) + offset) * token_BT + config.pad_token_id

    def packed_position_ids(self, config: PreTrainedConfig, tokens: PackedTokens, offset: int) -> np.ndarray:
        """Return the int64 position [Z] of each packed token; the first ``offset`` positions are the prompt's."""
        if not self.positions_skip_padding:
            return tokens.positions_Z + offset
        # A padding token within a text has the padding position and is not counted, as in transformers.
        token_Z = tokens.ids_Z != config.pad_token_id
        count_Z = np.cumsum(token_Z)
        before_B = count_Z[tokens.starts_B] - token_Z[tokens.starts_B]
        within_Z = count_Z - np.repeat(before_B, tokens.lengths_B)
        return np.where(token_Z, within_Z + offset + config.pad_token_id, config.pad_token_id)


def _is_long(config: PreTrainedConfig) -> bool:
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope"


FAMILIES: Registry[Family] = Registry(
    "model family", modules=("clients.backbone.family_rows", "clients.backbone.t5_rows"), check=instance_of(Family)
)
"""Supported families by model type. A new row has to pass ``tests/clients/test_injection.py`` and ``test_family_table.py``,
which reads docs/models.md."""


def family_of(values: Mapping[str, Any], model: str) -> Family:
    """Return the family of a model.

    Parameters
    ----------
    values
        Contents of the model's config.json.
    model
        Model name for errors.

    Raises
    ------
    ModelError
        If prompts do not work in such a model, or are untested in it.
    """
    name = str(values.get("model_type"))
    if name not in FAMILIES and (values.get("is_encoder_decoder") or name in _RELATIVES):
        why = _RELATIVES.get(
            name, "it is an encoder and a decoder, of which prompts and heads would need one; use either"
        )
        raise ModelError(f"model {model} is of type {name!r}, which is not supported: {why}")
    if name not in FAMILIES:
        raise ModelError(
            f"model {model} is of type {name!r}, which is not supported{_other_spelling(name)}; "
            f"use one of: {', '.join(FAMILIES)}, or load the plug-in that has its family (--load FILE.py)"
        )
    family = FAMILIES[name]
    for key, why in (*_UNSUPPORTED, *family.refused.items()):
        used = (key == "is_decoder" and family.predicts_next) or (key == "is_encoder_decoder" and family.encoder_alone)
        if values.get(key) and not used:
            raise ModelError(f"model {model} sets {key} in its config.json: {why}")
    position_type = values.get("position_embedding_type") or "absolute"
    if position_type != "absolute":
        raise ModelError(f"model {model} has position_embedding_type {position_type!r}; only absolute is supported")
    return family


def _other_spelling(name: str) -> str:
    """Return a question if the name is that of a family but for case and hyphens: a similar name is another architecture."""
    plain = name.lower().replace("-", "_")
    same = next((known for known in FAMILIES if known.replace("-", "_") == plain), None)
    return "" if same is None else f" (did you mean {same!r}?)"


_RELATIVES = {
    "deberta": "its attention joins its maps otherwise than deberta-v2, the type of DeBERTa-v2 and v3; use these",
    "gemma3": "it is a model of texts and images; use a gemma3_text",
}
"""Model types that look like a family's."""
_UNSUPPORTED = (
    ("is_decoder", "an encoder family used as a decoder is not supported; use a model of a decoder family"),
    ("is_encoder_decoder", "encoder-decoder models are not supported; use an encoder or a decoder"),
    ("per_layer_config", "layers with different configurations are not supported; use another model"),
    ("add_cross_attention", "cross-attention is not supported; use a plain encoder or decoder"),
    ("reorder_and_upcast_attn", "this variant of attention is not supported; set it to false or use another model"),
    (
        "quantization_config",
        "its weights are quantized already; use the unquantized model, with model.quantize=int8 or int4",
    ),
)
