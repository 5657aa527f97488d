"""What readers of PEFT adapters as starting points share.

The arrays decide which layers and which linear maps an adapter changes, so files of versions that do not state them
(``layers_to_transform``, ``exclude_modules``) are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from clients.backbone.families import Family
from fedsim.core.errors import ModelError, listed
from fedsim.prompts.peft_export import ADAPTER_ARRAYS

_CLASSIFIERS = ("classifier", "score", "pre_classifier", "qa_outputs")
"""Heads that PEFT trains beside an adapter. fedsim has a head of its own."""
_BASE = re.compile(r"base_model\.(model\.)?")


def by_layer(
    folder: Path, arrays: Mapping[str, torch.Tensor], family: Family, ending: str
) -> tuple[dict[int, dict[str, np.ndarray]], tuple[str, ...]]:
    """Return the matrices of linear maps by layer and by our names, and the names of a classifier's arrays.

    Parameters
    ----------
    ending
        Pattern of what follows a map's name in PEFT's; its first group is what follows it in ours.

    Raises
    ------
    ModelError
        If something else was trained, or an array is damaged.
    """
    place = re.compile(rf"base_model\.model\.(?:.+\.)?{re.escape(family.layers)}\.(\d+)\.(.+)\.{ending}")
    found: dict[int, dict[str, np.ndarray]] = {}
    others = []
    for name, array in arrays.items():
        if match := place.fullmatch(name):
            found.setdefault(int(match[1]), {})[f"{match[2]}.{match[3]}"] = matrix(folder, name, array)
        else:
            others.append(name)
    why = (
        f"which is no linear map in the layers of a model of type {family.name}; start from an adapter whose target_modules "
        "are, without modules_to_save"
    )
    return found, classifier_only(folder, others, why)


def classifier_only(folder: Path, names: list[str], why: str) -> tuple[str, ...]:
    """Return the names of a classifier's arrays among arrays that cannot be taken over.

    Raises
    ------
    ModelError
        If there are others; ``why`` goes on after their names.
    """
    short = {name: _BASE.sub("", name, count=1) for name in names}
    others = sorted(name for name in names if not short[name].startswith(_CLASSIFIERS))
    if others:
        raise ModelError(f"{folder} also trained {listed(others, 3)}, {why}")
    return tuple(sorted(short.values()))


def matrix(folder: Path, name: str, array: torch.Tensor) -> np.ndarray:
    """Return an array as float32 of two axes.

    Raises
    ------
    ModelError
        If it has others, or a number is not finite.
    """
    if array.ndim != 2:
        raise ModelError(f"{folder / ADAPTER_ARRAYS} holds {name} of shape {tuple(array.shape)}, which is no matrix")
    if not torch.isfinite(array).all():
        raise ModelError(f"{folder / ADAPTER_ARRAYS} holds NaN or infinite numbers in {name}")
    found: np.ndarray = array.float().numpy()
    return found
