"""Convert prompts of models with rotary positions from one position offset to another.

A rotary model rotates queries and keys by their position: a text token at position i scores a prefix key k, which has no
position, as (R(i) q) . k. If text positions start at P, the same score needs the key R(P) k, because
(R(i + P) q) . (R(P) k) = (R(i) q) . k. Values are not rotated. Learned positions cannot be converted.

Shape suffixes: L layers, K {key, value}, H key/value heads, P prompt length, D head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.backbone.families import Family
from fedsim.core.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
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
    for layers in rotary_kinds(family, config):
        rope = config.rope_parameters if layers is None else config.rope_parameters[layers]
        most = _most_of_one_rotation(rope, config)
        if most is not None and longest > most:
            return (
                f"has rotary positions of type {rope['rope_type']}, which turn otherwise in texts of over {most} positions "
                f"(prompt.length and data.max_length make {longest})"
            )
    return None


def _most_of_one_rotation(rope: Mapping[str, Any], config: PreTrainedConfig) -> int | None:
    """Return the number of positions up to which a shift is one rotation; None for no limit.

    Two types choose their frequencies by sequence length, but use a single set up to some length.
    """
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
    if obstacle is not None:
        raise ValueError(f"the model {obstacle}")
    shifted_LKHPD = prompt_LKHPD.copy()
    for kind in rotary_kinds(family, config):
        rotation = Rotation(family, config, kind)
        layers = [layer for layer in range(len(prompt_LKHPD)) if _turns(layer, kind, config)]
        shifted_LKHPD[layers, 0] = rotation.turned(prompt_LKHPD[layers, 0], by)
    return shifted_LKHPD


def _turns(layer: int, kind: str | None, config: PreTrainedConfig) -> bool:
    """Whether a layer has rotary positions of a kind; SmolLM3 has layers without any."""
    if kind is not None:
        return bool(config.layer_types[layer] == kind)
    return bool((getattr(config, "no_rope_layers", None) or {layer: 1})[layer])


class Rotation:
    """The rotary positions of a model, or of its layers of one kind.

    Parameters
    ----------
    kind
        One of :func:`rotary_kinds`.
    """

    def __init__(self, family: Family, config: PreTrainedConfig, kind: str | None) -> None:
        build = rotary_class(family)
        if build is None:
            raise ValueError(f"{family.name} has learned positions")
        self._rotary: Any = build(config)
        self._own = () if kind is None else (kind,)
        self._name = "" if kind is None else f"{kind}_"
        self._apply = sys.modules[build.__module__].apply_rotary_pos_emb

    @property
    def frequencies(self) -> Tensor:
        """One for each pair of numbers of a head that turns."""
        return self._rotary.get_buffer(f"{self._name}inv_freq")

    def turned(self, keys_LHPD: np.ndarray, by: int) -> np.ndarray:
        """Return keys turned by a number of positions, float32."""
        keys = torch.from_numpy(keys_LHPD).double()
        cos_11D, sin_11D = self._rotary(keys, torch.tensor([[by]]), *self._own)
        # Some types also scale what they rotate; a prefix key is not a key of the text and keeps its norm.
        scale = getattr(self._rotary, f"{self._name}attention_scaling")
        turned: np.ndarray = self._apply(keys, keys, cos_11D / scale, sin_11D / scale)[1].float().numpy()
        return turned


def rotary_kinds(family: Family, config: PreTrainedConfig) -> tuple[str | None, ...]:
    """Return the kinds of layers with rotary angles of their own; None alone where all layers have the same."""
    return tuple(dict.fromkeys(config.layer_types)) if family.rotary_by_layer else (None,)


def rotary_class(family: Family) -> type[nn.Module] | None:
    """Return the family's rotary embedding, defined beside its model class, or None."""
    module = sys.modules[family.model_class("base").__module__]
    return getattr(module, f"{family.title}RotaryEmbedding", None)
