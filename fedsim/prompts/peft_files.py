"""Read the files of a PEFT adapter's folder. A pickle is never opened: it could run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clients.backbone.model_files import ADAPTER_CONFIG
from fedsim.core.errors import ModelError
from fedsim.prompts.peft_export import ADAPTER_ARRAYS, HEAD_ARRAYS


def adapter_config(folder: Path, kind: str) -> dict[str, Any]:
    """Return the keys of ``adapter_config.json``; adapters of any version of PEFT have fewer or more of them.

    Raises
    ------
    ModelError
        If it is not the configuration of a PEFT adapter of type ``kind``, such as ``LORA``.
    """
    path = folder / ADAPTER_CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["peft_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path} is not the configuration of a PEFT adapter: {error}") from None
    if found != kind:
        raise ModelError(f"{folder} holds an adapter of type {found}; only {kind} adapters are supported")
    return dict(values)


def adapter_arrays(folder: Path) -> dict[str, torch.Tensor]:
    """Return the adapter's arrays by PEFT's names.

    Raises
    ------
    ModelError
        If they are missing, pickled or damaged.
    """
    path = folder / ADAPTER_ARRAYS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = ", only adapter_model.bin, a pickle, which could run code" if pickled else ""
        raise ModelError(f"{folder} has no {ADAPTER_ARRAYS}{why}; save the adapter with safe_serialization=True")
    return _loaded(path)


def head_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return the float32 arrays of ``head.safetensors``, which fedsim writes beside an adapter; empty without one.

    Raises
    ------
    ModelError
        If the file is damaged.
    """
    path = folder / HEAD_ARRAYS
    return {name: array.float().numpy() for name, array in _loaded(path).items()} if path.is_file() else {}


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
