"""Read IA³ adapters of PEFT, as people have them, into arrays by layer and name: what is trained, the vectors minus 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clients.backbone.families import Family
from clients.tuners.ia3 import VECTOR
from fedsim.core.errors import ModelError
from fedsim.prompts.named_arrays import NamedArrays
from fedsim.prompts.peft_export import ADAPTER_ARRAYS
from fedsim.prompts.peft_files import adapter_arrays, adapter_config, head_arrays
from fedsim.prompts.peft_start import by_layer


def read_ia3(folder: Path, family: Family) -> NamedArrays:
    """Read the adapter in a folder; no model is needed.

    The shapes say which vectors scale a map's input: ``feedforward_modules`` is not needed.

    Raises
    ------
    ModelError
        If it is not an IA³ adapter saved as safetensors, is damaged, or does more than to scale linear maps of layers.
    """
    adapter_config(folder, "IA3")
    scales, classifier = by_layer(folder, adapter_arrays(folder), family, f"({VECTOR})")
    if not scales:
        raise ModelError(f"{folder / ADAPTER_ARRAYS} holds no {VECTOR}; is it the whole adapter?")
    for layer, parts in scales.items():
        for name, array in parts.items():
            if 1 not in array.shape:
                raise ModelError(
                    f"{folder / ADAPTER_ARRAYS} holds {name} of shape {array.shape} in layer {layer}, which is no vector"
                )
    arrays = {layer: {name: array - np.float32(1) for name, array in parts.items()} for layer, parts in scales.items()}
    return NamedArrays(arrays, {}, head_arrays(folder), classifier)
