"""Short texts for tiny decoders, and what transformers generates from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tiny_models import CONFIGS, VOCABULARY, WITHOUT_SDPA

from clients.backbone.families import FAMILIES
from fedsim.core.decoding import Decoding

NEW = 8
GREEDY = Decoding(max_new_tokens=NEW, end_ids=())
DECODERS = [family for family in (*CONFIGS, *WITHOUT_SDPA) if FAMILIES[family].predicts_next]


def texts(count: int = 5, seed: int = 0, most: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, length) for length in rng.integers(1, most, count)]


def lists(tokens: list[np.ndarray]) -> list[list[int]]:
    return [each.tolist() for each in tokens]


def generated_alone(
    model: Any, some: list[np.ndarray], new: int = NEW, ends: list[int] | None = None
) -> list[list[int]]:
    """Return what a model of transformers, or of PEFT, generates greedily from each text by itself."""
    model.generation_config.eos_token_id = ends
    found = []
    for text in some:
        ids = torch.from_numpy(text)[None]
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
        found.append(whole[0, len(text) :].tolist())
    return found
