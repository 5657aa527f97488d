"""Switches of a config.json beyond sizes: followed, irrelevant to results, or refused.

docs/models.md has a row for each switch, and ``tests/clients/test_attention_switches.py`` a test for each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from clients.backbone.families import Family
from clients.backbone.rotary import Rotation, rotary_class, rotary_kinds
from fedsim.core.errors import ModelError, shown, suggestion

Misfit = tuple[str, str] | None
"""A setting of a config.json and why it cannot be used; None if nothing is wrong."""

_CHANGES_NO_RESULT = frozenset(
    (
        # Extra outputs of a forward pass: requested explicitly where needed.
        *("output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states", "use_cache"),
        # How, not what, is computed.
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"),
        *("chunk_size_feed_forward", "fusion_config", "gradient_checkpointing"),
    )
)

_WINDOWED = ("full_attention", "sliding_attention")


def relevant(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without values that change no result, some of which make passes fail."""
    kept = {key: value for key, value in values.items() if key not in _CHANGES_NO_RESULT}
    if "attention_dropout" in kept and kept["attention_dropout"] is None:
        del kept["attention_dropout"]  # without it transformers disables dropout until it is switched on
    return kept


def refuse_unsupported(values: Mapping[str, Any], config: PreTrainedConfig, family: Family, model: str) -> None:
    """Refuse a variant in which prompts would be wrong, or that transformers builds but cannot run.

    Parameters
    ----------
    values
        Contents of the model's config.json.
    config
        The configuration that transformers parsed from it.
    model
        Model name for errors.

    Raises
    ------
    ModelError
        Naming the key.
    """
    for misfit in (
        _causality(values, family),
        _widths(config),
        _legacy(values, family),
        _layers(values, config, family),
        _heads(config, family),
        _rope(config, family),
        _distances(config, family),
    ):
        if misfit is not None:
            what, why = misfit
            raise ModelError(f"model {model} sets {what} in its config.json: {why}")


def _causality(values: Mapping[str, Any], family: Family) -> Misfit:
    given = values.get("is_causal", True)
    if family.predicts_next:
        # transformers treats other values as false where it makes a mask, and null as true where it makes none.
        why = "it has to be true or false; without it a decoder is causal"
        return None if isinstance(given, bool) else (f"is_causal to {json.dumps(given)[:40]}", why)
    if values.get("is_causal"):
        return "is_causal", "in an encoder transformers follows it in batches without padding alone; set it to false"
    return None


def _widths(config: PreTrainedConfig) -> Misfit:
    """Compare what OPT's word embeddings and layers measure; behind its layers it projects back."""
    words = getattr(config, "word_embed_proj_dim", config.hidden_size)
    if words == config.hidden_size:
        return None
    return f"word_embed_proj_dim to {words}", f"it has to be its hidden_size, {config.hidden_size}; use another model"


def _legacy(values: Mapping[str, Any], family: Family) -> Misfit:
    """Refuse DeBERTa's other LM head, which transformers gives no output embeddings of its own."""
    if not family.relative_attention or values.get("legacy", True):
        return None
    return (
        "legacy to false",
        "that LM head is not supported; remove the key, which model.head.kind=classifier does not need",
    )


def _layers(values: Mapping[str, Any], config: PreTrainedConfig, family: Family) -> Misfit:
    if family.window == "all" and "layer_types" in values and family.name != "mistral":
        return "layer_types", f"all layers of a {family.name} are alike; remove it"
    if family.window == "all" and "layer_types" in values:
        # Its AutoConfig does; built by model_type, all layers would have the window.
        return (
            "layer_types",
            f"transformers then loads it as a ministral, not as a {family.name}; remove it if all are alike",
        )
    if family.window == "none":
        return None
    window, kinds = config.sliding_window, config.layer_types if family.window == "by layer" else ()
    unknown = next((kind for kind in kinds if kind not in _WINDOWED), None)
    if unknown is not None:
        return f"layer_types with {unknown!r}", f"{family.name} has {' and '.join(_WINDOWED)} only"
    if window is None and "sliding_attention" in kinds:
        return (
            "layer_types with 'sliding_attention', but no window",
            "set use_sliding_window to true and sliding_window to a number, or all layer_types to full_attention",
        )
    if window is not None and window < 1:
        return f"sliding_window to {window}", "that hides every token from itself; set it to 1 or more, or to null"
    return None


def _heads(config: PreTrainedConfig, family: Family) -> Misfit:
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    size = getattr(config, "attention_head_size", None) if family.relative_attention else None
    if size is not None and size * heads != config.hidden_size:
        return (
            f"attention_head_size to {size}",
            f"its {heads} heads have to be as wide as its layers, {config.hidden_size}",
        )
    if rotary_class(family) is None or groups is None or (groups > 0 and heads % groups == 0):
        return None
    return f"num_key_value_heads to {groups}", f"it has to divide the {heads} attention heads"


def _distances(config: PreTrainedConfig, family: Family) -> Misfit:
    """Refuse numbers of T5's buckets of distances with which transformers divides by zero, or finds no bucket."""
    if not family.position_bias:
        return None
    buckets, longest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    near = buckets // 4  # distances to each side that have a bucket of their own
    if near < 1:
        return f"relative_attention_num_buckets to {buckets}", "each side needs two of them; set it to 4 or more"
    if longest > near:
        return None
    return (
        f"relative_attention_max_distance to {longest}",
        f"it has to be greater than the {near} nearest distances, a quarter of relative_attention_num_buckets",
    )


def _rope(config: PreTrainedConfig, family: Family) -> Misfit:
    """Compare the frequencies with the head dimension: transformers notices a mismatch only in the first forward pass."""
    if rotary_class(family) is None:
        return None
    for layers in rotary_kinds(family, config):
        parameters = config.rope_parameters if layers is None else config.rope_parameters.get(layers)
        misfit = _rope_of(parameters, layers, config, family)
        if misfit is not None:
            return misfit
    return None


def _rope_of(parameters: Any, layers: str | None, config: PreTrainedConfig, family: Family) -> Misfit:
    known = ("default", *ROPE_INIT_FUNCTIONS)
    kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
    if kind is None:
        of = "has one for all layers" if layers is None else f"has one for its layers with {layers}"
        return ("rope_parameters without a rope_type", f"{family.name} {of}; use one of: {', '.join(known)}")
    if kind not in known:
        return f"rope_type to {shown(kind)}{suggestion(str(kind), known)}", f"use one of: {', '.join(known)}"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    try:
        frequencies = Rotation(family, config, layers).frequencies
    except (RuntimeError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        return f"rope_type {kind} with values that give no frequencies", str(error).strip().splitlines()[0]
    if layers is not None and kind == "longrope":
        return (
            "rope_type longrope for a kind of layers",
            f"{family.name} with it is not supported; use another rope_type",
        )
    turned = 2 * len(frequencies)
    if turned != head_dim and not (family.partial_rotary and 0 < turned < head_dim):
        part = parameters.get("partial_rotary_factor")
        return (
            f"rope_type {kind}" + ("" if part is None else f" with partial_rotary_factor {shown(part)}"),
            f"it would turn {2 * len(frequencies)} of the {head_dim} numbers of a head, which {family.name} cannot; use a "
            "partial_rotary_factor of 1.0, or rope_type proportional",
        )
    if not torch.isfinite(frequencies).all():
        return f"rope_type {kind} with values that give frequencies that are not finite", "correct rope_parameters"
    return None
