"""The shape of a backbone, from its config.json and the headers of its weight files; nothing is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.backbone.location import folder_of, locate, num_parameters
from clients.backbone.model_files import ENCODERS_ALONE, check_model_type, check_weights
from clients.config import ModelConfig
from fedsim.core.layout import PromptGeometry


@dataclass(frozen=True)
class ModelShape:
    """Sizes that determine the memory."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_size: int
    gated: bool
    """Whether the feed-forward part is gated (SwiGLU), which adds a third array of its size."""
    vocab_size: int
    experts: bool = False
    """Whether the feed-forward part is a mixture of experts, whose arrays are no linear maps; ``feed_forward_size`` is then
    that of the experts that a token visits."""
    relative_attention: bool = False
    """Whether attention is DeBERTa's, which keeps scores against distances, too."""
    position_bias: bool = False
    """Whether attention is T5's, which adds a bias by distance to each head's scores."""

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of each linear map of a layer; experts are no linear maps."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        up = ((self.feed_forward_size, self.hidden_size),) * (2 if self.gated else 1)
        attention = ((heads, self.hidden_size), *((kv_heads, self.hidden_size),) * 2, (self.hidden_size, heads))
        if self.experts:
            return attention
        return (*attention, *up, (self.hidden_size, self.feed_forward_size))

    def geometry(self, prompt_length: int) -> PromptGeometry:
        """Return the shape of prompts of a given length."""
        return PromptGeometry(self.num_layers, self.num_kv_heads, prompt_length, self.head_dim)


_GATED = ("gemma", "gemma2", "gemma3_text", "modernbert")
"""Model types with a gated feed-forward part whose activation is not SiLU."""


def model_shape(config: ModelConfig) -> ModelShape | None:
    """Return the shape of the model; None if it is not on this machine yet, or of an unknown kind.

    Raises
    ------
    ModelError
        If the folder or package that the config names is missing, holds no weights, or does not state the type of
        model.
    """
    folder = model_folder(config)
    if folder is None:
        return None
    if str(folder) == locate(config):  # for a hub name, some files may not be fetched yet
        check_weights(folder, config.location)
    numbers = num_parameters(str(folder))
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(values, dict):
            check_model_type(values, config.location)
        return None if numbers is None else _shape(values, numbers)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def model_folder(config: ModelConfig) -> Path | None:
    """Return the folder of the model's files; for a hub name its cache folder, or None if it is not cached.

    Raises
    ------
    ModelError
        If the folder or package that the config names is missing.
    """
    return folder_of(locate(config))


def _shape(values: dict[str, Any], numbers: int) -> ModelShape:
    hidden = _first(values, "hidden_size", "n_embd", "dim", "d_model")
    heads = _first(values, "num_attention_heads", "n_head", "n_heads", "num_heads")
    return ModelShape(
        num_parameters=numbers,
        num_layers=_first(values, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or values.get("d_kv") or hidden // heads),
        feed_forward_size=_feed_forward(values) or 4 * hidden,
        gated=_is_gated(values),
        vocab_size=_first(values, "vocab_size"),
        experts=bool(values.get("num_experts_per_tok")),
        relative_attention=values.get("model_type") == "deberta-v2",
        position_bias=values.get("model_type") in ENCODERS_ALONE,
    )


def _is_gated(values: dict[str, Any]) -> bool:
    kind = values.get("model_type")
    if kind in ENCODERS_ALONE:
        named = str(values.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu"))
        return bool(values.get("is_gated_act", named.startswith("gated")))
    return values.get("hidden_act") == "silu" or kind in _GATED


def _feed_forward(values: dict[str, Any]) -> int:
    names = ("moe_intermediate_size", "intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff")
    size = next((int(values[name]) for name in names if values.get(name)), 0)
    return size * int(values.get("num_experts_per_tok") or 1)


def _first(values: dict[str, Any], *names: str) -> int:
    """Return the value of the first name that is present."""
    found = [values[name] for name in names if values.get(name)]
    if not found:
        raise KeyError(names[0])
    return int(found[0])
