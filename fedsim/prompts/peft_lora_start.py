"""Read LoRA adapters of PEFT, as people have them, into arrays by layer and name: what can be taken over exactly, and no more.

Whatever else an adapter does is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clients.backbone.families import Family
from clients.tuners.lora import A, B
from fedsim.core.errors import ModelError, listed
from fedsim.prompts.named_arrays import NamedArrays
from fedsim.prompts.peft_export import ADAPTER_ARRAYS
from fedsim.prompts.peft_files import adapter_arrays, adapter_config, head_arrays
from fedsim.prompts.peft_start import by_layer

_OTHER_FORMS = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
)
"""Keys of PEFT that make something else of LoRA where they are set."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` with which PEFT takes the initial product out of the frozen weights."""


def read_lora(folder: Path, family: Family) -> NamedArrays:
    """Read the adapter in a folder; no model is needed.

    Raises
    ------
    ModelError
        If it is not a LoRA adapter saved as safetensors, is damaged, or does more than to change linear maps of a model's
        layers by matrices of one rank and scale.
    """
    values = adapter_config(folder, "LORA")
    _refuse_other_forms(folder, values)
    arrays, classifier = by_layer(folder, adapter_arrays(folder), family, rf"({A}|{B})\.weight")
    _refuse_halves(folder, arrays)
    rank, alpha = _number(folder, values, "r", 8), _number(folder, values, "lora_alpha", 8)
    _refuse_patterns(folder, values, int(rank), alpha, arrays)
    return NamedArrays(
        arrays,
        {"rank": int(rank), "alpha": alpha, "scaling": "rslora" if values.get("use_rslora") else "standard"},
        head_arrays(folder),
        classifier,
    )


def _refuse_other_forms(folder: Path, values: Mapping[str, Any]) -> None:
    for key in _OTHER_FORMS:
        if values.get(key):
            raise ModelError(
                f"{folder} is an adapter with {key}={values[key]}, which is no plain LoRA; train one without"
            )
    if (values.get("bias") or "none") != "none":
        raise ModelError(
            f"{folder} is an adapter with bias={values['bias']}: biases of the model were trained too, which "
            "tuner.kind=lora does not do; train one with bias=none"
        )
    initial = str(values.get("init_lora_weights", True)).lower()
    if initial.startswith(_CHANGED_BASE):
        raise ModelError(
            f"{folder} is an adapter with init_lora_weights={initial}, which belongs to changed weights of the model; convert "
            "it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _number(folder: Path, values: Mapping[str, Any], key: str, default: int) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
        raise ModelError(f"{folder} is damaged: its adapter_config.json has {key}={value}, not a positive number")
    return float(value)


def _refuse_patterns(
    folder: Path, values: Mapping[str, Any], rank: int, alpha: float, arrays: Mapping[int, Mapping[str, np.ndarray]]
) -> None:
    """Refuse ranks or scales that differ from map to map; patterns that change nothing are of no account."""
    ranks = {int(part.shape[0]) for named in arrays.values() for name, part in named.items() if name.endswith(A)}
    if ranks != {rank}:
        raise ModelError(
            f"{folder} has matrices of rank {listed(map(str, sorted(ranks)))} with r={rank} (rank_pattern); tuner.kind=lora "
            "has one rank for all, so start from an adapter without rank_pattern"
        )
    for key, common in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        pattern = values.get(key) or {}
        if not isinstance(pattern, Mapping) or any(value != common for value in pattern.values()):
            raise ModelError(
                f"{folder} is an adapter with {key}={pattern}; tuner.kind=lora has one rank and one alpha for all maps, so "
                f"start from an adapter without {key}"
            )


def _refuse_halves(folder: Path, found: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Refuse an A without its B, or without any: then the file is not the whole adapter."""
    maps = {
        (layer, name.rpartition(".")[0], name.rpartition(".")[2]) for layer, parts in found.items() for name in parts
    }
    halves = [(layer, name) for layer, name, half in maps if (layer, name, B if half == A else A) not in maps]
    if halves or not maps:
        which = (
            f"only one of {A} and {B} of {min(halves)[1]} in layer {min(halves)[0]}" if halves else f"no {A} and {B}"
        )
        raise ModelError(f"{folder / ADAPTER_ARRAYS} holds {which}; is it the whole adapter?")
