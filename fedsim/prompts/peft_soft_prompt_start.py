"""Read prompt-tuning adapters of PEFT, as people have them: the input embeddings of the virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.backbone.model_files import ADAPTER_CONFIG
from clients.tuners.soft_prompt import PROMPT
from fedsim.core.errors import ModelError
from fedsim.prompts.named_arrays import NamedArrays
from fedsim.prompts.peft_export import ADAPTER_ARRAYS
from fedsim.prompts.peft_files import adapter_arrays, adapter_config, head_arrays
from fedsim.prompts.peft_soft_prompt import EMBEDDINGS
from fedsim.prompts.peft_start import classifier_only, matrix


def read_soft_prompt(folder: Path) -> NamedArrays:
    """Read the adapter in a folder; no model is needed.

    How PEFT started the prompt (``prompt_tuning_init``) is of no account. Keys that an older version did not write are not
    needed; those that are there must describe the array.

    Raises
    ------
    ModelError
        If it is not a prompt-tuning adapter of a model with one layer stack, not saved as safetensors, or damaged.
    """
    values = adapter_config(folder, "PROMPT_TUNING")
    if values.get("num_transformer_submodules") not in (None, 1) or values.get("task_type") == "SEQ_2_SEQ_LM":
        raise ModelError(
            f"{folder} is an adapter of an encoder-decoder model; only models with one stack are supported"
        )
    arrays = adapter_arrays(folder)
    given = arrays.pop(EMBEDDINGS, None)
    if given is None:
        raise ModelError(f"{folder / ADAPTER_ARRAYS} has no array {EMBEDDINGS}; is it the whole adapter?")
    prompt_PD = matrix(folder, EMBEDDINGS, given)
    for key, size in zip(("num_virtual_tokens", "token_dim"), prompt_PD.shape, strict=True):
        if values.get(key) not in (None, size):
            raise ModelError(
                f"{folder} is damaged: its {ADAPTER_CONFIG} has {key}={values[key]}, but {EMBEDDINGS} has shape "
                f"{prompt_PD.shape}"
            )
    classifier = classifier_only(
        folder, list(arrays), "which is no soft prompt; start from an adapter without modules_to_save"
    )
    layers = _layers(folder, values)
    return NamedArrays({0: {PROMPT: prompt_PD}}, {"length": len(prompt_PD)}, head_arrays(folder), classifier, layers)


def _layers(folder: Path, values: Mapping[str, Any]) -> int | None:
    layers = values.get("num_layers")
    if layers is not None and type(layers) is not int:
        raise ModelError(f"{folder} is damaged: its {ADAPTER_CONFIG} has num_layers={layers}, not a number")
    return layers
