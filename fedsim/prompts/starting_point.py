"""Starting points of a run (``prompt.start_from``, ``tuner.start_from``): read and checked once, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from clients.backbone.families import family_of
from clients.backbone.model_files import ADAPTER_CONFIG
from clients.backbone.rotary import cannot_shift, shift_prompt
from clients.tuners.initial import StartingPoint
from clients.tuners.tuner import Tuner
from fedsim.configuration.schema import Config
from fedsim.core.errors import ModelError, listed
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.prompts.named_start import load_named
from fedsim.prompts.prompt_file import GLOBAL_PROMPT, read_prompt
from server.selection import choose_layers

if TYPE_CHECKING:
    from clients.backbone.shared_weights import SharedWeights


def load_start(config: Config, weights: SharedWeights, tuner: Tuner) -> StartingPoint | None:
    """Read what ``prompt.start_from`` or ``tuner.start_from`` names; None if neither is set.

    Prompts tuned with another ``prompt.position_offset`` are converted to this run's, if the model's positions allow it.

    Parameters
    ----------
    tuner
        The run's tuner, which knows what it does not train.

    Raises
    ------
    ModelError
        If there is no such adapter, run or prompt file, or it does not fit this run.
    """
    if config.tuner.start_from is not None:
        named = load_named(config, weights, tuner)
        for layer in set(_layers_needed(config, named.geometry.num_layers)) & set(named.geometry.tunable):
            named.tuned_of(layer)
        return named
    if config.prompt.start_from is None:
        return None
    start, geometry, numbering = _read(config.prompt.start_from)
    values = json.loads(weights.config_json)
    family = family_of(values, config.model.location)
    model = family.config(values)
    if geometry.num_layers != model.num_hidden_layers:
        raise _misfit(config, start.source, geometry, f"{model.num_hidden_layers} layers")
    if geometry.prompt_length != config.prompt.length:
        raise ModelError(
            f"prompt.start_from {start.source} has prompts of {geometry.prompt_length} virtual tokens, but prompt.length "
            f"is {config.prompt.length}; set prompt.length={geometry.prompt_length}"
        )
    for layer in _layers_needed(config, model.num_hidden_layers):
        start.tuned_of(layer)
    wanted = config.prompt.position_offset
    if numbering == wanted:
        return start
    longest = config.prompt.length + config.data.max_length
    obstacle = cannot_shift(family, model, longest)
    if obstacle is not None:
        raise ModelError(
            f"prompt.start_from {start.source} was trained with prompt.position_offset={numbering}, this run has {wanted}, and "
            f"the model {config.model.location} {obstacle}, so it would start elsewhere; set prompt.position_offset={numbering}"
        )
    by = config.prompt.length if wanted == "paper" else -config.prompt.length
    moved_LKHPD = shift_prompt(start.tuned_LX, by, family, model, longest)
    return StartingPoint(start.source, geometry, start.layers, moved_LKHPD, start.head)


def check_start(config: Config, start: StartingPoint, full: VectorLayout) -> str:
    """Check that a starting point fits the backbone; return a sentence on what is taken from it.

    Raises
    ------
    ModelError
        If key/value heads or head dimension differ.
    """
    if isinstance(full.geometry, PromptGeometry) and isinstance(start.geometry, PromptGeometry):
        if start.geometry != full.geometry:
            raise _misfit(config, start.source, start.geometry, _shape(full.geometry))
    elif start.geometry != full.geometry:
        raise ModelError(f"tuner.start_from {start.source} does not fit the model {config.model.location}")
    without = f"; its classifier ({listed(start.left_out)}) is left out" if start.left_out else ""
    if not full.head_shapes:
        return f"starting from {start.source}{without}"
    head = (
        "and its head" if start.has_head(full) else "which has no head of this shape; the head is initialised at random"
    )
    return f"starting from {start.source}, {head}{without}"


def _read(source: str) -> tuple[StartingPoint, PromptGeometry, str]:
    """Return the source's contents, the shape of its prompts and the ``prompt.position_offset`` it was trained with."""
    path = Path(source).expanduser()
    if (path / ADAPTER_CONFIG).is_file():
        from fedsim.prompts.peft_adapter import read_peft

        adapter = read_peft(path)
        layers = tuple(range(adapter.geometry.num_layers))
        return (
            StartingPoint(source, adapter.geometry, layers, adapter.prompt_LKHPD, adapter.head),
            adapter.geometry,
            "paper",
        )
    if path.is_dir() and not (path / "prompt" / GLOBAL_PROMPT).is_file():
        raise ModelError(
            f"prompt.start_from {source} holds neither {ADAPTER_CONFIG} (a PEFT adapter) nor prompt/{GLOBAL_PROMPT} (a run "
            "that has ended)"
        )
    if not path.exists():
        raise ModelError(
            f"prompt.start_from {source} does not exist; give the folder of a PEFT adapter or of a run, or a prompt file"
        )
    file = read_prompt(path)
    geometry = file.prefix("prompt.start_from takes")
    start = StartingPoint(source, geometry, file.layout.layers, file.tuned_LX, file.head)
    return start, geometry, file.metadata["prompt"]["position_offset"]


def _layers_needed(config: Config, num_layers: int) -> tuple[int, ...]:
    """Return the layers that need a prompt at the start of this run."""
    layers = config.layers
    if layers.unselected == "local" or layers.choose == "score" or layers.share_rule != "fixed":
        return tuple(range(num_layers))
    return choose_layers(layers, num_layers, None, config.seed)


def _misfit(config: Config, source: str, geometry: PromptGeometry, has: str) -> ModelError:
    return ModelError(
        f"prompt.start_from {source} was made for {_shape(geometry)}, but the model {config.model.location} has "
        f"{has}; start from a prompt of the same model"
    )


def _shape(geometry: PromptGeometry) -> str:
    return f"{geometry.num_layers} layers with {geometry.num_kv_heads} key/value heads of dimension {geometry.head_dim}"
