"""Prompts of models with rotary positions, moved from one numbering of the text to another.

A rotary model turns queries and keys by their position: a text token at position i asks a prefix key k, which has no
position, for (R(i) q) . k. Where the text is numbered from P on, the same score needs the key R(P) k, because
(R(i + P) q) . (R(P) k) = (R(i) q) . k. Values are not turned. Learned positions have no such way back.

Shape suffixes: L layers, K {key, value}, H key/value heads, P prompt length, D head dimension.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from clients.backbone.families import Family


def cannot_shift(family: Family, config: PreTrainedConfig, longest: int) -> str | None:
    """Return why prompts cannot be moved to another numbering of the text, in words behind "the model", or None.

    Parameters
    ----------
    longest
        Positions that prompt and text take together at most.
    """
    if rotary_class(family) is None:
        return "has learned positions"
    most = _most_of_one_rotation(config)
    if most is None or longest <= most:
        return None
    kind = config.rope_parameters["rope_type"]
    return (
        f"has rotary positions of type {kind}, which turn otherwise in texts of over {most} positions (prompt.length and "
        f"data.max_length make {longest})"
    )


def _most_of_one_rotation(config: PreTrainedConfig) -> int | None:
    """Return the positions up to which one rotation stands for a shift, None for any number.

    Two types choose their frequencies by the length of the sequence, but have one set of them up to a length.
    """
    rope = config.rope_parameters
    limits = {"dynamic": config.max_position_embeddings, "longrope": rope.get("original_max_position_embeddings", 0)}
    return limits.get(rope["rope_type"])


def shift_prompt(
    prompt_LKHPD: np.ndarray, by: int, family: Family, config: PreTrainedConfig, longest: int
) -> np.ndarray:
    """Return the prompts that do for a text numbered from ``by`` on what these do for one numbered from 0 on.

    Parameters
    ----------
    prompt_LKHPD
        float32; not changed.
    by
        Number of positions; negative for the way back.
    longest
        See :func:`cannot_shift`.

    Raises
    ------
    ValueError
        If :func:`cannot_shift` says so.
    """
    obstacle = cannot_shift(family, config, longest)
    build = rotary_class(family)
    if obstacle is not None or build is None:
        raise ValueError(f"the model {obstacle}")
    rotary = build(config)
    shifted_LKHPD = prompt_LKHPD.copy()
    keys_LHPD = torch.from_numpy(prompt_LKHPD[:, 0]).double()
    cos_11D, sin_11D = rotary(keys_LHPD, torch.tensor([[by]]))
    # Some types also scale what they turn; a prefix key is none of the text's keys and stays as long as it was.
    cos_11D, sin_11D = cos_11D / rotary.attention_scaling, sin_11D / rotary.attention_scaling
    apply = sys.modules[build.__module__].apply_rotary_pos_emb
    shifted_LKHPD[:, 0] = apply(keys_LHPD, keys_LHPD, cos_11D, sin_11D)[1].float().numpy()
    return shifted_LKHPD


def rotary_class(family: Family) -> type[nn.Module] | None:
    """Return the family's own rotary embedding, which stands beside its model class, or None."""
    module = sys.modules[family.model_class("base").__module__]
    return getattr(module, f"{family.title}RotaryEmbedding", None)
