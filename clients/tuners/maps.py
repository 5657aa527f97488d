"""Linear maps of a frozen model."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def is_map(module: nn.Module) -> bool:
    """Whether a module is a linear map."""
    return isinstance(module, nn.Linear | Conv1D)


def features(module: nn.Module) -> tuple[int, int]:
    """Return the features in and out of a linear map; GPT-2's keeps its weight transposed."""
    size_out, size_in = module.weight.shape  # type: ignore[misc]
    return (int(size_out), int(size_in)) if isinstance(module, Conv1D) else (int(size_in), int(size_out))


def hidden_size(layers: nn.ModuleList) -> int:
    """Return the size of the hidden states: the features that a layer's first linear map reads."""
    return features(next(module for module in layers[0].modules() if is_map(module)))[0]
