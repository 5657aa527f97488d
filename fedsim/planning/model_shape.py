"""The shape of a backbone, from its config.json and the heads of its weight files: nothing is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.config import ModelConfig
from clients.location import locate, num_parameters
from fedsim.core.layout import PromptGeometry


@dataclass(frozen=True)
class ModelShape:
    """What memory follows from."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_size: int
    gated: bool
    """The feed-forward part has a gate (SwiGLU), which is a third array of its size."""
    vocab_size: int

    def geometry(self, prompt_length: int) -> PromptGeometry:
        """Return the shape of prompts of some length."""
        return PromptGeometry(self.num_layers, self.num_kv_heads, prompt_length, self.head_dim)


def model_shape(config: ModelConfig) -> ModelShape | None:
    """Return the shape of the model, or None where it is not on this machine yet, or of a kind that is not known.

    Raises
    ------
    ModelError
        If the folder or the package that the config names is not there.
    """
    folder = model_folder(config)
    if folder is None:
        return None
    numbers = num_parameters(str(folder))
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return None if numbers is None else _shape(values, numbers)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_folder(config: ModelConfig) -> Path | None:
    """Return the folder of the model's files; for a name on the hub that in its cache, None where it is not there.

    Raises
    ------
    ModelError
        If the folder or the package that the config names is not there.
    """
    location = locate(config)
    if (Path(location) / "config.json").is_file():
        return Path(location)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(location, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _shape(values: dict[str, Any], numbers: int) -> ModelShape:
    hidden, heads = _first(values, "hidden_size", "n_embd"), _first(values, "num_attention_heads", "n_head")
    return ModelShape(
        num_parameters=numbers,
        num_layers=_first(values, "num_hidden_layers", "n_layer"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        feed_forward_size=int(values.get("intermediate_size") or values.get("n_inner") or 4 * hidden),
        gated=values.get("hidden_act") == "silu",
        vocab_size=_first(values, "vocab_size"),
    )


def _first(values: dict[str, Any], *names: str) -> int:
    """Return the value of the first of some names that is there."""
    return int(next(values[name] for name in names if values.get(name)))
