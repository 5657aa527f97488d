"""Convert prompts of models with rotary positions from one position offset to another.

A rotary model rotates queries and keys by their position: a text token at position i scores a prefix key k, which has no
position, as (R(i) q) . k. If text positions start at P, the same score needs the key R(P) k, because
(R(i + P) q) . (R(P) k) = (R(i) q) . k. Values are not rotated. Learned positions cannot be converted.

Shape suffixes: L layers, K {key, value}, H key/value heads, P prompt length, D head dimension.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from clients.backbone.families import Family
from fedsim.core.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig
else:
    torch = deferred("torch")


def cannot_shift(family: Family, config: PreTrainedConfig, longest: int) -> str | None:
    """Return why prompts cannot be converted to another offset, phrased to follow "the model", or None.

    Parameters
    ----------
    longest
        Most positions of prompt and text together.
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
    """Return the number of positions up to which a shift is one rotation; None for no limit.

    Two types choose their frequencies by sequence length, but use a single set up to some length.
    """
    rope = config.rope_parameters
    limits = {"dynamic": config.max_position_embeddings, "longrope": rope.get("original_max_position_embeddings", 0)}
    return limits.get(rope["rope_type"])


def shift_prompt(
    prompt_LKHPD: np.ndarray, by: int, family: Family, config: PreTrainedConfig, longest: int
) -> np.ndarray:
    """Return prompts that act on text positions from ``by`` as the given ones do on positions from 0.

    Parameters
    ----------
    prompt_LKHPD
        float32; not changed.
    by
        Number of positions; negative for the inverse.
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
    # Some types also scale what they rotate; a prefix key is not a key of the text and keeps its norm.
    cos_11D, sin_11D = cos_11D / rotary.attention_scaling, sin_11D / rotary.attention_scaling
    apply = sys.modules[build.__module__].apply_rotary_pos_emb
    shifted_LKHPD[:, 0] = apply(keys_LHPD, keys_LHPD, cos_11D, sin_11D)[1].float().numpy()
    return shifted_LKHPD


def rotary_class(family: Family) -> type[nn.Module] | None:
    """Return the family's rotary embedding, defined beside its model class, or None."""
    module = sys.modules[family.model_class("base").__module__]
    return getattr(module, f"{family.title}RotaryEmbedding", None)
