"""Starting points of tuners that train named arrays in each layer (``tuner.start_from``): earlier runs and PEFT adapters.

A map that the source left alone starts as the tuner draws it, which changes no output; so a source with fewer layers or maps
than the run is continued exactly. One with more is refused, since its change would be lost.

To take another kind of tuner: give it a row in ``_READERS``, whose function reads the folder of a PEFT adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.backbone.families import Family, family_of
from clients.backbone.model_files import ADAPTER_CONFIG
from clients.tuners.initial import StartingPoint
from clients.tuners.make import make_tuner
from fedsim.configuration.schema import Config
from fedsim.core.errors import ModelError, listed
from fedsim.core.layout import LayerArrays
from fedsim.planning.model_shape import model_shape
from fedsim.planning.tuned_shape import tuned_shape
from fedsim.prompts.prompted_model import GLOBAL_PROMPT, read_prompt

if TYPE_CHECKING:
    from clients.backbone.loading import SharedWeights


@dataclass(frozen=True)
class NamedArrays:
    """What a source trained."""

    arrays: Mapping[int, Mapping[str, np.ndarray]]
    """float32 arrays by layer, and by their names in :class:`~fedsim.core.layout.LayerArrays`."""
    keys: Mapping[str, Any]
    """The keys of section ``tuner`` that give the arrays their meaning: the run must have the same."""
    head: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 arrays of the head by name; empty if the source has none."""
    left_out: tuple[str, ...] = ()
    """Names of a classifier's arrays that are not taken over."""


def _read_lora(folder: Path, family: Family) -> NamedArrays:
    from fedsim.prompts.peft_lora_start import read_lora

    return read_lora(folder, family)


_READERS: dict[str, Callable[[Path, Family], NamedArrays]] = {"lora": _read_lora}
"""By ``tuner.kind``: what reads the folder of a PEFT adapter."""
_KEYS = {"lora": ("rank", "alpha", "scaling")}
"""By ``tuner.kind``: the keys that give the arrays their meaning."""


def load_named(config: Config, weights: SharedWeights) -> StartingPoint:
    """Read what ``tuner.start_from`` names.

    Raises
    ------
    ModelError
        If there is no such adapter, run or prompt file, or the run cannot start exactly where it ended.
    """
    family = family_of(json.loads(weights.config_json), config.model.location)
    named = _read(config, family)
    _check_keys(config, named)
    model = model_shape(config.model)
    assert model is not None  # its weights have been read
    shape = tuned_shape(config, model)
    assert isinstance(shape, LayerArrays)
    _check_arrays(config, named, shape)
    tuner, rows = make_tuner(config.tuner, config.prompt, family), []
    for layer in range(shape.num_layers):
        tuned_X = tuner.initial(shape, layer, config.seed).astype(np.float32)
        parts = shape.split(tuned_X)
        for name, array in named.arrays.get(layer, {}).items():
            parts[name][...] = array
        rows.append(tuned_X)
    source = str(config.tuner.start_from)
    return StartingPoint(
        source, shape, tuple(range(shape.num_layers)), np.stack(rows), named.head, left_out=named.left_out
    )


def _read(config: Config, family: Family) -> NamedArrays:
    kind, source = config.tuner.kind, config.tuner.start_from
    assert source is not None
    path = Path(source).expanduser()
    if (path / ADAPTER_CONFIG).is_file():
        return _READERS[kind](path, family)
    if not path.exists():
        raise ModelError(
            f"tuner.start_from {source} does not exist; give the folder of a PEFT adapter or of a run, or a prompt file"
        )
    if path.is_dir() and not (path / "prompt" / GLOBAL_PROMPT).is_file():
        raise ModelError(
            f"tuner.start_from {source} holds neither {ADAPTER_CONFIG} (a PEFT adapter) nor prompt/{GLOBAL_PROMPT} (a run "
            "that has ended)"
        )
    file = read_prompt(path)
    if file.kind != kind:
        raise ModelError(
            f"tuner.start_from {source} was trained with tuner.kind={file.kind}, but this run has tuner.kind={kind}"
        )
    shape = file.layout.geometry
    assert isinstance(shape, LayerArrays)
    arrays = {layer: shape.split(row) for layer, row in zip(file.layout.layers, file.tuned_LX, strict=True)}
    return NamedArrays(arrays, {key: file.metadata["tuner"][key] for key in _KEYS[kind]}, file.head)


def _check_keys(config: Config, named: NamedArrays) -> None:
    own = {key: getattr(config.tuner, key) for key in named.keys}
    other = {key: value for key, value in named.keys.items() if value != own[key]}
    if other:
        theirs, ours = (", ".join(f"{key} {_word(values[key])}" for key in other) for values in (other, own))
        raise ModelError(
            f"tuner.start_from {config.tuner.start_from} was trained with {theirs}, but section tuner has {ours}; set "
            f"{' '.join(f'tuner.{key}={_word(value)}' for key, value in other.items())}"
        )


def _check_arrays(config: Config, named: NamedArrays, shape: LayerArrays) -> None:
    """Refuse layers, maps or shapes that the run does not have."""
    source, wanted = config.tuner.start_from, dict(shape.arrays)
    same = "start from an adapter or a run of the same model"
    if (last := max(named.arrays)) >= shape.num_layers:
        raise ModelError(
            f"tuner.start_from {source} changes layer {last}, but the model {config.model.location} has {shape.num_layers} "
            f"layers; {same}"
        )
    theirs = {name: array.shape for parts in named.arrays.values() for name, array in parts.items()}
    if theirs.keys() - wanted.keys():
        maps, own = (list(dict.fromkeys(name.rpartition(".")[0] for name in names)) for names in (theirs, wanted))
        raise ModelError(
            f"tuner.start_from {source} changes {listed(maps)}, but this run {listed(own)}, so a part would be lost; set "
            f"tuner.targets=[{','.join(maps)}], or {same}"
        )
    for parts in named.arrays.values():
        for name, array in parts.items():
            if array.shape != wanted[name]:
                raise ModelError(
                    f"tuner.start_from {source} has {name} of shape {array.shape}, but the model {config.model.location} takes "
                    f"{wanted[name]}; {same}"
                )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
