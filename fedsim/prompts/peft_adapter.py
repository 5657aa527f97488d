"""Convert trained prompts to PEFT prefix-tuning adapters and back.

PEFT puts a prefix into every layer and counts the text's positions after it. A run's prompt becomes an adapter only if that
gives the same scores; everything else is refused. PEFT itself writes and reads the configuration; arrays are safetensors.

Shape suffixes: L layers, K {key, value}, H key/value heads, P prompt length, D head dimension, W = 2 L H D.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PrefixTuningConfig, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from clients.backbone.families import Family, family_of
from clients.backbone.heads import resolve_pooling
from clients.backbone.loading import config_values
from clients.backbone.location import folder_of, locate
from clients.backbone.model_files import ADAPTER_CONFIG, adapter_in
from clients.backbone.rotary import cannot_shift, shift_prompt
from clients.config import ModelConfig
from fedsim.core.errors import ModelError
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.uses import EVERY_KEY
from fedsim.prompts.peft_readme import readme
from fedsim.prompts.prompted_model import PERSONAL_PROMPTS, PromptFile, read_prompt

ADAPTER_ARRAYS = "adapter_model.safetensors"
HEAD_ARRAYS = "head.safetensors"
_KEY = "prompt_embeddings"
"""PEFT's name for the prefixes of all layers, [P, W], W running over (layer, key or value, head, head dimension)."""


@dataclass(frozen=True)
class PeftPrompt:
    """Contents of a prefix-tuning adapter."""

    folder: Path
    prompt_LKHPD: np.ndarray
    """float32 prompts of all layers, for text positions from P on (``prompt.position_offset: paper``)."""
    base_model: str | None
    task_type: str | None
    head: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 arrays of ``head.safetensors``, which fedsim exports with a classifier head; else empty."""
    unused: tuple[str, ...] = ()
    """Names of further arrays in the adapter, such as a classifier that PEFT trained."""

    @property
    def geometry(self) -> PromptGeometry:
        """Shape of the prompts."""
        num_layers, _, num_kv_heads, length, head_dim = self.prompt_LKHPD.shape
        return PromptGeometry(num_layers, num_kv_heads, length, head_dim)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_peft(folder: str | Path) -> PeftPrompt:
    """Read a prefix-tuning adapter saved by PEFT or :func:`export_peft`; no model is needed.

    An adapter trained with ``prefix_projection`` is read as well: PEFT saves the projected prefix.

    Raises
    ------
    ModelError
        If it is not a prefix-tuning adapter of a model with one layer stack, not saved as safetensors, or damaged.
    """
    folder = Path(folder)
    config = _read_adapter_config(folder)
    path = folder / ADAPTER_ARRAYS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = ", only adapter_model.bin, a pickle, which could run code" if pickled else ""
        raise ModelError(f"{folder} has no {ADAPTER_ARRAYS}{why}; save the adapter with safe_serialization=True")
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    prompt_LKHPD = _from_rows(arrays.pop(_KEY, None), config, path)
    return PeftPrompt(
        folder,
        prompt_LKHPD,
        config.base_model_name_or_path,
        config.task_type,
        _read_head(folder / HEAD_ARRAYS),
        tuple(sorted(arrays)),
    )


def _read_adapter_config(folder: Path) -> PrefixTuningConfig:
    path = folder / ADAPTER_CONFIG
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["peft_type"]
        if kind != "PREFIX_TUNING":
            raise ModelError(f"{folder} holds an adapter of type {kind}; only PREFIX_TUNING adapters are supported")
        config = PrefixTuningConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not the configuration of a PEFT adapter: {error}") from None
    if (config.num_transformer_submodules or 1) != 1:
        raise ModelError(
            f"{folder} is an adapter of an encoder-decoder model; only models with one stack are supported"
        )
    return config


def _from_rows(rows_PW: torch.Tensor | None, config: PrefixTuningConfig, path: Path) -> np.ndarray:
    """Reshape PEFT's rows to prompts, float32 [L, K, H, P, D]."""
    if rows_PW is None:
        raise ModelError(f"{path} has no array {_KEY}; is it the whole adapter?")
    given = (config.num_virtual_tokens, config.num_layers, config.num_attention_heads, config.token_dim)
    length, layers, heads, width = (n if type(n) is int and n > 0 else 0 for n in given)
    if 0 in (length, layers, heads, width) or width % heads:
        raise ModelError(
            f"{path.with_name(ADAPTER_CONFIG)} does not state the number of layers, heads and virtual tokens"
        )
    if tuple(rows_PW.shape) != (length, 2 * layers * width):
        raise ModelError(
            f"{path} holds {_KEY} of shape {tuple(rows_PW.shape)}, but its configuration describes "
            f"{(length, 2 * layers * width)}; save it with PEFT's save_pretrained"
        )
    if not torch.isfinite(rows_PW).all():
        raise ModelError(f"{path} holds NaN or infinite numbers")
    prompt_LKHPD = rows_PW.float().reshape(length, layers, 2, heads, width // heads).permute(1, 2, 3, 0, 4)
    return np.ascontiguousarray(prompt_LKHPD.numpy())


def _read_head(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        return {name: array.float().numpy() for name, array in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


# -- writing -----------------------------------------------------------------------------------------------------------


def default_output(path: str | Path) -> Path:
    """Return the folder ``peft`` beside a run's prompt file."""
    return read_prompt(path).path.parent / "peft"


def export_peft(path: str | Path, output: str | Path, client: int | None = None) -> Path:
    """Export a trained prompt as an adapter that ``peft.PeftModel.from_pretrained(base_model, output)`` loads.

    The PEFT model's logits are those of the run's model. With a classifier head, ``head.safetensors`` is written beside
    the adapter. ``README.md`` explains how to use both.

    Parameters
    ----------
    path
        A run folder, or a ``prompt/global.safetensors``.
    output
        Folder to write; must be new or empty.
    client
        Take the layers that were not exchanged from this client's personal prompts (``layers.unselected: local``).

    Raises
    ------
    ModelError
        If no adapter gives the same scores, or the output cannot be written.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelError(f"the output {output} exists and is not an empty folder; give another one with --output")
    file = read_prompt(path)
    geometry = file.prefix("an adapter of PEFT is written for")
    prompt_LKHPD = _every_layer(file, geometry, client)
    model = ModelConfig.model_validate(file.metadata["model"], context=EVERY_KEY)
    config, family = _describe(model)
    _refuse_adapter_beside(model)
    length = geometry.prompt_length
    if file.metadata["prompt"]["position_offset"] == "none":
        longest = length + file.metadata["max_length"]
        obstacle = cannot_shift(family, config, longest)
        if obstacle is not None:
            raise ModelError(
                f"{file.path} was trained with prompt.position_offset=none, PEFT counts positions after the prefix, and the "
                f"model {model.location} {obstacle}, so no adapter gives the same scores; train with "
                "prompt.position_offset=paper"
            )
        prompt_LKHPD = shift_prompt(prompt_LKHPD, length, family, config, longest)
    _check_window(file, length, model, config, family)
    _write(output, file, prompt_LKHPD, model, config, family)
    return output


def _every_layer(file: PromptFile, geometry: PromptGeometry, client: int | None) -> np.ndarray:
    """Return the prompts of all layers, the personal ones from ``client``."""
    layers = file.layout.layers
    missing = [layer for layer in range(geometry.num_layers) if layer not in layers]
    personal_path = file.path.with_name(PERSONAL_PROMPTS)
    if client is None:
        if missing and personal_path.is_file():
            raise ModelError(
                f"{file.path} holds the exchanged layers only, the prompts of {missing} stayed on the clients; give one of "
                f"them with --client"
            )
        if missing:
            raise ModelError(
                f"{file.path} has no prompt in layers {missing}, and in a PEFT adapter every layer has a prefix; even one of "
                "zeros takes attention, so no adapter gives the same scores; train with layers.choose=all, or with "
                "layers.unselected=local and export with --client"
            )
        return file.tuned_LX
    if not missing or not personal_path.is_file():
        raise ModelError(f"there are no personal prompts beside {file.path}; leave --client out")
    prompts = dict(zip(layers, file.tuned_LX, strict=True))
    prompts |= zip(missing, _personal(personal_path, VectorLayout(geometry, tuple(missing)), client), strict=True)
    return np.stack([prompts[layer] for layer in range(geometry.num_layers)])


def _personal(path: Path, layout: VectorLayout, client: int) -> np.ndarray:
    """Return a client's personal prompts of the layers of ``layout``."""
    try:
        with safe_open(path, framework="numpy") as file:
            layers = tuple(json.loads(file.metadata()["fedsim"])["layers"])
            clients, personal_NM = file.get_tensor("clients").tolist(), file.get_tensor("personal")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} does not hold personal prompts: {error}") from None
    if layers != layout.layers:
        raise ModelError(
            f"{path} holds layers {list(layers)}, but {list(layout.layers)} are missing in the global prompt"
        )
    if client not in clients:
        shown = ", ".join(map(str, clients[:20])) + (", ..." if len(clients) > 20 else "")
        raise ModelError(f"client {client} never trained, so it has no personal prompt; these have one: {shown}")
    prompt_LKHPD: np.ndarray = layout.split(personal_NM[clients.index(client)])[0]
    return prompt_LKHPD.astype(np.float32)


def _describe(model: ModelConfig) -> tuple[PreTrainedConfig, Family]:
    values = config_values(locate(model), model.location)
    family = family_of(values, model.location)
    return family.config(values), family


def _refuse_adapter_beside(model: ModelConfig) -> None:
    """Refuse a model that transformers changes on loading, by attaching an adapter that lies beside it."""
    folder = folder_of(locate(model))
    beside = None if folder is None else adapter_in(folder)
    if beside is not None:
        raise ModelError(
            f"the folder of model {model.location} holds {beside.named}, which transformers puts into the model whenever it "
            f"loads it, so no further adapter gives the same scores; move {ADAPTER_CONFIG} out of the folder"
        )


def _check_window(file: PromptFile, length: int, model: ModelConfig, config: PreTrainedConfig, family: Family) -> None:
    """Refuse a model whose attention window may exclude PEFT's prefix; in fedsim every token sees the prompt."""
    windows = family.windows(config)
    if not windows:
        return
    # A causal window of w holds the token itself; one to both sides reaches w tokens beyond it.
    reach = min(windows) + (0 if family.causal_attention(config) else 1)
    longest = file.metadata["max_length"]
    if length + longest > reach:
        mend = f"data.max_length={reach - length} or less" if reach > length else "a shorter prompt"
        raise ModelError(
            f"a token of the model {model.location} sees {reach} tokens up to itself, among which PEFT counts the prefix, so "
            f"texts of up to data.max_length={longest} would lose sight of it; train with {mend}"
        )


def _write(
    output: Path,
    file: PromptFile,
    prompt_LKHPD: np.ndarray,
    model: ModelConfig,
    config: PreTrainedConfig,
    family: Family,
) -> None:
    num_layers, _, num_kv_heads, length, head_dim = prompt_LKHPD.shape
    # FEATURE_EXTRACTION is PEFT's only type that passes the prefix to whatever model it is given and returns that
    # model's own output: without a type the prefix is dropped; the others expect their own classifier.
    with_lm_head = model.head.kind == "verbalizer" and family.predicts_next
    adapter = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM if with_lm_head else TaskType.FEATURE_EXTRACTION,
        base_model_name_or_path=locate(model),
        inference_mode=True,
        num_virtual_tokens=length,
        num_layers=num_layers,
        # With grouped-query attention PEFT expects the key/value heads here, and their width.
        num_attention_heads=num_kv_heads,
        token_dim=num_kv_heads * head_dim,
        num_transformer_submodules=1,
    )
    text = readme(file.metadata, adapter, family, token_types=getattr(config, "type_vocab_size", 0) > 1)
    rows_PW = np.ascontiguousarray(prompt_LKHPD.transpose(3, 0, 1, 2, 4)).reshape(length, -1)
    try:
        output.mkdir(parents=True, exist_ok=True)
        adapter.save_pretrained(str(output))
        save_file({_KEY: rows_PW}, output / ADAPTER_ARRAYS, metadata={"format": "pt"})
        if file.head:
            _write_head(output / HEAD_ARRAYS, file, model, family)
        (output / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ModelError(f"the adapter cannot be written to {output}: {error.strerror or error}") from None


def _write_head(path: Path, file: PromptFile, model: ModelConfig, family: Family) -> None:
    about: Mapping[str, Any] = {
        "pooling": resolve_pooling(model.head.pooling, predicts_next=family.predicts_next),
        "labels": file.metadata["task"]["labels"],
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in file.head.items()}
    save_file(arrays, path, metadata={"head": json.dumps(about, sort_keys=True)})
