"""Convert trained prefixes to PEFT adapters and back; others: ``peft_soft_prompt.py``, ``peft_lora.py``, ``peft_ia3.py``.

PEFT puts a prefix into every layer and counts the text's positions after it. A run's prompt becomes an adapter only if that
gives the same scores; everything else is refused. PEFT itself writes and reads the configuration; arrays are safetensors.

Shape suffixes: L layers, K {key, value}, H key/value heads, P prompt length, D head dimension, W = 2 L H D.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from peft import PrefixTuningConfig

from clients.backbone.model_files import ADAPTER_CONFIG
from clients.backbone.rotary import cannot_shift, shift_prompt
from clients.tuners.projected_prefix import made_prefix
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays, PromptGeometry, VectorLayout
from fedsim.prompts.peft_export import (
    ADAPTER_ARRAYS,
    TrainedModel,
    has_personal,
    refuse_used,
    tuned_layers,
)
from fedsim.prompts.peft_files import adapter_arrays, adapter_config, head_arrays
from fedsim.prompts.peft_ia3 import export_ia3
from fedsim.prompts.peft_lora import export_lora
from fedsim.prompts.peft_readme import AboutAdapter
from fedsim.prompts.peft_soft_prompt import export_soft_prompt
from fedsim.prompts.prompt_file import PromptFile, read_prompt

_KEY = "prompt_embeddings"
"""PEFT's name for the prefixes of all layers, [P, W], W running over (layer, key or value, head, head dimension)."""

_TOKEN_TYPES = """\
This model tells the texts of an example apart by token types, which PEFT drops. Give them to the base model, with the
prefix that PEFT makes, instead of the call above:

```python
prefix_mask = torch.ones(len(input_ids), {length}, dtype=attention_mask.dtype)
output = base(
    input_ids=input_ids,
    attention_mask=torch.cat([prefix_mask, attention_mask], dim=1),
    token_type_ids=token_type_ids,
    past_key_values=model.get_prompt(len(input_ids)),
)
```
"""


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
    arrays = adapter_arrays(folder)
    prompt_LKHPD = _from_rows(arrays.pop(_KEY, None), config, folder / ADAPTER_ARRAYS)
    return PeftPrompt(
        folder,
        prompt_LKHPD,
        config.base_model_name_or_path,
        config.task_type,
        head_arrays(folder),
        tuple(sorted(arrays)),
    )


def _read_adapter_config(folder: Path) -> PrefixTuningConfig:
    path = folder / ADAPTER_CONFIG
    adapter_config(folder, "PREFIX_TUNING")
    try:
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


# -- writing -----------------------------------------------------------------------------------------------------------


def default_output(path: str | Path) -> Path:
    """Return the folder ``peft`` beside a run's prompt file."""
    return read_prompt(path).path.parent / "peft"


def export_peft(path: str | Path, output: str | Path, client: int | None = None) -> Path:
    """Export what a run trained as an adapter that ``peft.PeftModel.from_pretrained(base_model, output)`` loads.

    The PEFT model's logits are those of the run's model. With a classifier head, ``head.safetensors`` is written beside
    the adapter. ``README.md`` explains how to use both.

    Parameters
    ----------
    path
        A run folder, or a ``prompt/global.safetensors``.
    output
        Folder to write; must be new or empty.
    client
        Take the layers that were not exchanged from this client (``layers.unselected: local``).

    Raises
    ------
    ModelError
        If no adapter gives the same scores, or the output cannot be written.
    """
    output = Path(output)
    refuse_used(output)
    file = read_prompt(path)
    if file.kind == "projected_prefix":
        file = as_prefix(file)
    export = _EXPORTS.get(file.kind)
    if export is None:
        raise ModelError(f"{file.path} was trained with tuner.kind={file.kind}, for which PEFT has no adapter")
    export(file, output, client)
    return output


def as_prefix(file: PromptFile) -> PromptFile:
    """Return the prefix that a file's network makes, as a run with ``tuner.kind=prefix`` would have written it."""
    network = file.layout.geometry
    assert isinstance(network, LayerArrays)
    tuned_LX = made_prefix(network, torch.from_numpy(file.tuned_LX)).numpy()[0]
    num_layers, _, num_kv_heads, length, head_dim = tuned_LX.shape
    layout = VectorLayout.full(PromptGeometry(num_layers, num_kv_heads, length, head_dim), file.layout.head_shapes)
    prompt = file.metadata["prompt"] | {"length": length, "position_offset": "paper"}
    metadata = file.metadata | {"prompt": prompt, "tuner": {"kind": "prefix"}}
    return replace(file, metadata=metadata, layout=layout, tuned_LX=np.ascontiguousarray(tuned_LX))


def _export_prefix(file: PromptFile, output: Path, client: int | None) -> None:
    geometry = file.prefix("an adapter of PEFT is written for")
    prompt_LKHPD = _every_layer(file, geometry, client)
    trained = TrainedModel.of(file)
    family, config = trained.family, trained.config
    length = geometry.prompt_length
    if file.metadata["prompt"]["position_offset"] == "none":
        longest = length + file.metadata["max_length"]
        obstacle = cannot_shift(family, config, longest)
        if obstacle is not None:
            raise ModelError(
                f"{file.path} was trained with prompt.position_offset=none, PEFT counts positions after the prefix, and the "
                f"model {trained.model.location} {obstacle}, so no adapter gives the same scores; train with "
                "prompt.position_offset=paper"
            )
        prompt_LKHPD = shift_prompt(prompt_LKHPD, length, family, config, longest)
    _check_reach(trained, length)
    adapter = _prefix_config(trained, prompt_LKHPD)
    rows_PW = prompt_LKHPD.transpose(3, 0, 1, 2, 4).reshape(length, -1)
    trained.write(output, adapter, {_KEY: rows_PW}, _about(adapter), client)


def _every_layer(file: PromptFile, geometry: PromptGeometry, client: int | None) -> np.ndarray:
    """Return the prompts of all layers, the personal ones from ``client``."""
    prompts = tuned_layers(file, client)
    missing = [layer for layer in range(geometry.num_layers) if layer not in prompts]
    if missing and has_personal(file):
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
    return np.stack(list(prompts.values()))


def _check_reach(trained: TrainedModel, length: int) -> None:
    """Refuse a model that PEFT's prefix does not reach, or whose window may exclude it: here every token sees the prompt."""
    if not trained.family.has_cache:
        raise ModelError(
            f"a {trained.family.name} has no cache of keys and values in transformers, so PEFT would leave a prefix out; keep "
            "the prompt file (fedsim.load_adapter), or train with tuner.kind=lora, which PEFT has for this model"
        )
    windows = trained.family.windows(trained.config)
    if not windows:
        return
    # A causal window of w holds the token itself; one to both sides reaches w tokens beyond it.
    reach = min(windows) + (0 if trained.family.causal_attention(trained.config) else 1)
    location, longest = trained.model.location, trained.file.metadata["max_length"]
    if length + longest > reach:
        mend = f"data.max_length={reach - length} or less" if reach > length else "a shorter prompt"
        raise ModelError(
            f"a token of the model {location} sees {reach} tokens up to itself, among which PEFT counts the prefix, so "
            f"texts of up to data.max_length={longest} would lose sight of it; train with {mend}"
        )


def _prefix_config(trained: TrainedModel, prompt_LKHPD: np.ndarray) -> PrefixTuningConfig:
    num_layers, _, num_kv_heads, length, head_dim = prompt_LKHPD.shape
    return PrefixTuningConfig(
        **trained.common,
        num_virtual_tokens=length,
        num_layers=num_layers,
        # With grouped-query attention PEFT expects the key/value heads here, and their width.
        num_attention_heads=num_kv_heads,
        token_dim=num_kv_heads * head_dim,
        num_transformer_submodules=1,
    )


def _about(adapter: PrefixTuningConfig) -> AboutAdapter:
    length = adapter.num_virtual_tokens
    return AboutAdapter(
        title="Prefix-tuning adapter",
        trained="A prompt",
        what=f"{length} virtual tokens in each of {adapter.num_layers} layers",
        calls="Give every call an `attention_mask` and no `position_ids`: PEFT counts the positions after the prefix itself.",
        token_types=_TOKEN_TYPES.format(length=length),
    )


_EXPORTS = {
    "prefix": _export_prefix,
    "soft_prompt": export_soft_prompt,
    "lora": export_lora,
    "ia3": export_ia3,
}
"""By ``tuner.kind``: what writes an adapter; PEFT has no other kinds."""
