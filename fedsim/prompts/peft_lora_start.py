"""Read LoRA adapters of PEFT, as people have them, into arrays by layer and name: what can be taken over exactly, and no more.

The arrays decide which layers and which linear maps an adapter changes, so files of versions that do not state them
(``layers_to_transform``, ``exclude_modules``) are read as well. Whatever else an adapter does is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clients.backbone.families import Family
from clients.tuners.lora import A, B
from fedsim.core.errors import ModelError, listed
from fedsim.prompts.named_start import NamedArrays
from fedsim.prompts.peft_export import ADAPTER_ARRAYS
from fedsim.prompts.peft_files import adapter_arrays, adapter_config, head_arrays

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
_CLASSIFIERS = ("classifier", "score", "pre_classifier", "qa_outputs")
"""Heads that PEFT trains beside an adapter. fedsim has a head of its own."""


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
    arrays, others = _by_layer(folder, adapter_arrays(folder), family)
    rank, alpha = _number(folder, values, "r", 8), _number(folder, values, "lora_alpha", 8)
    _refuse_patterns(folder, values, int(rank), alpha, arrays)
    return NamedArrays(
        arrays,
        {"rank": int(rank), "alpha": alpha, "scaling": "rslora" if values.get("use_rslora") else "standard"},
        head_arrays(folder),
        others,
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


def _by_layer(
    folder: Path, arrays: Mapping[str, torch.Tensor], family: Family
) -> tuple[dict[int, dict[str, np.ndarray]], tuple[str, ...]]:
    """Return A and B of each layer as ``MAP.lora_A``, and the names of a classifier's arrays."""
    place = re.compile(rf"base_model\.model\.(?:.+\.)?{re.escape(family.layers)}\.(\d+)\.(.+)\.({A}|{B})\.weight")
    found: dict[int, dict[str, np.ndarray]] = {}
    classifier, others = [], []
    for name, array in arrays.items():
        if match := place.fullmatch(name):
            found.setdefault(int(match[1]), {})[f"{match[2]}.{match[3]}"] = _finite(folder, name, array)
        elif name.removeprefix("base_model.model.").startswith(_CLASSIFIERS):
            classifier.append(name.removeprefix("base_model.model."))
        else:
            others.append(name)
    if others:
        raise ModelError(
            f"{folder} also trained {listed(sorted(others), 3)}, which is no linear map in the layers of a model of type "
            f"{family.name}; start from an adapter whose target_modules are, without modules_to_save"
        )
    _refuse_halves(folder, found)
    return found, tuple(sorted(classifier))


def _finite(folder: Path, name: str, array: torch.Tensor) -> np.ndarray:
    if array.ndim != 2:
        raise ModelError(f"{folder / ADAPTER_ARRAYS} holds {name} of shape {tuple(array.shape)}, which is no matrix")
    if not torch.isfinite(array).all():
        raise ModelError(f"{folder / ADAPTER_ARRAYS} holds NaN or infinite numbers in {name}")
    return array.float().numpy()


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
