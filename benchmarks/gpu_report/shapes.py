"""Random models of the right shape: speed does not depend on what weights say, and no network is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.flops import Shape
from benchmarks.products import FLOAT32
from clients.backbone.families import FAMILIES
from clients.backbone.loading import SharedWeights, load_shared_weights
from clients.backbone.model import Backbone
from clients.config import ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from clients.tuners.tuner import Tuner

WORDS_C = np.array([10, 20])
"""Token of each class."""
PAD = 1
"""In texts; a LLaMA has no padding token of its own."""


@dataclass(frozen=True)
class ModelSize:
    """A model's family and sizes."""

    name: str
    family: str
    values: Mapping[str, Any]
    """Of its config.json."""
    prompt_length: int

    @property
    def shape(self) -> Shape:
        """The sizes on which operations depend."""
        values, heads = self.values, self.values["num_attention_heads"]
        width = values["hidden_size"] // heads * values.get("num_key_value_heads", heads)
        gated = self.family == "llama"
        return Shape(
            values["hidden_size"],
            values["intermediate_size"],
            values["num_hidden_layers"],
            keys=width,
            feeds=3 if gated else 2,
            causal=gated,
        )

    def of_layers(self, layers: int) -> ModelSize:
        """Return the model with fewer layers."""
        fewer = min(layers, self.values["num_hidden_layers"])
        return replace(self, name=f"{self.name}, {fewer} layers", values={**self.values, "num_hidden_layers": fewer})

    def tuner(self, kind: str) -> Tuner:
        """Return what is trained; PEFT counts a text's positions after a prefix, and so does this."""
        prompt = PromptConfig(length=self.prompt_length, position_offset="paper")
        return make_tuner(TunerConfig.model_validate({"kind": kind}), prompt, FAMILIES[self.family])


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": PAD}
_LLAMA = {"max_position_embeddings": 2048, "tie_word_embeddings": True}
LARGE = (
    ModelSize(
        "RoBERTa-large",
        "roberta",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "vocab_size": 50265,
            **_ROBERTA,
        },
        20,
    ),
    ModelSize(
        "LLaMA 1B",
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            **_LLAMA,
        },
        20,
    ),
)
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
}
SMALL = (
    ModelSize("tiny RoBERTa", "roberta", {**_TINY, **_ROBERTA}, 4),
    ModelSize("tiny LLaMA", "llama", {**_TINY, "num_key_value_heads": 2, **_LLAMA}, 4),
)


def random_model(family: str, values: Mapping[str, Any], device: torch.device) -> PreTrainedModel:
    """Return a model with the LM head of its family and random weights, drawn on the device, where that is fast."""
    torch.manual_seed(0)
    with torch.device(device):
        config = FAMILIES[family].config({"model_type": family, **values})
        model: PreTrainedModel = FAMILIES[family].model_class(FAMILIES[family].lm_kind)(config)
    return model


class Models:
    """Random models on one device, made when they are asked for.

    Parameters
    ----------
    folder
        Where their files are made.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self._device, self._folder = device, folder
        self._read: tuple[tuple[str, str], SharedWeights] | None = None
        disable_progress_bar()

    def backbone(self, size: ModelSize, tuner: str, **model: Any) -> Backbone:
        """Build a worker's backbone.

        Parameters
        ----------
        model
            Keys of section ``model``; weights are bfloat16 unless ``dtype`` or ``autocast`` is given.
        """
        dtype = model.pop("dtype", FLOAT32 if "autocast" in model else "bfloat16")
        device = model.pop("device", self._device.type)
        if dtype == FLOAT32 and "autocast" not in model and "products" in ModelConfig.model_fields:
            model.setdefault("products", FLOAT32)  # whatever a run on this machine would choose
        config = ModelConfig(path=str(self._saved(size)), dtype=dtype, **model)
        key = (size.name, dtype)
        if self._read is None or self._read[0] != key:  # the last ones are kept: several cells run on the same
            self._read = None
            self._read = (key, load_shared_weights(config))
        return Backbone.build(self._read[1], config, size.tuner(tuner), len(WORDS_C), WORDS_C, device)

    def plain(self, size: ModelSize) -> PreTrainedModel:
        """Return transformers' own model, frozen, in bfloat16."""
        family = FAMILIES[size.family]
        model_class: Any = family.model_class(family.lm_kind)
        model: Any = model_class.from_pretrained(self._saved(size), dtype=torch.bfloat16)
        plain: PreTrainedModel = model.to(self._device).eval().requires_grad_(False)
        return plain

    def _saved(self, size: ModelSize) -> Path:
        folder = self._folder / size.name.replace(" ", "-").replace(",", "")
        if not folder.exists():
            random_model(size.family, size.values, self._device).to("cpu", torch.bfloat16).save_pretrained(folder)
        return folder


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())
