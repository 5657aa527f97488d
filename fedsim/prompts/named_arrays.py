"""Named arrays that a source of a run trained, and whether the run can start exactly there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.ia3 import VECTOR
from clients.tuners.tuner import Tuner
from fedsim.configuration.schema import Config
from fedsim.core.errors import ModelError, listed
from fedsim.core.layout import LayerArrays, OneLayer

LEAVE_ALONE = ("lora", "ia3")
"""Kinds whose numbers at the start change no output, so that a part that the source lacks can start there."""
_KEYS: dict[str, tuple[str, ...]] = {
    "soft_prompt": ("length",),
    "late_prompt": ("length", "depth", "generator", "bottleneck"),
    "generated_prompt": ("length", "bottleneck", "terms"),
    "prompt_mixture": ("length", "bottleneck", "temperature"),
    "lora": ("rank", "alpha", "scaling", "exact"),
    "ia3": (),
    "adapter": ("bottleneck", "layer_norms"),
}
"""By ``tuner.kind``: the keys that give the arrays their meaning."""
_FROZEN = {
    "lora": "set tuner.train=both, or start from a run with this tuner.train and seed",
    "prompt_mixture": "set the tuner.sources of that run, or its seed if they were random",
}
"""By ``tuner.kind``: what makes frozen arrays those of the source."""


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
    num_layers: int | None = None
    """Layers of the model, if the source says it."""


def key_values(tuner: TunerConfig, shape: LayerArrays) -> dict[str, Any]:
    """Return the keys that give a tuner's arrays their meaning, with the values that they act with."""
    found = {key: getattr(tuner, key) for key in _KEYS[tuner.kind]}
    if "bottleneck" in found:
        found["bottleneck"] = tuner.width
    if "depth" in found:
        assert isinstance(shape, OneLayer)
        found["depth"] = shape.layer
    if not found.get("exact", True):
        del found["exact"]  # without residuals it makes no difference: they start at zero
    return found


def check_named(config: Config, named: NamedArrays, shape: LayerArrays, tuner: Tuner) -> None:
    """Check that a run can start exactly where a source ended.

    Raises
    ------
    ModelError
        If a key, a layer, a map or a shape differs, or an array that the run does not train.
    """
    _check_keys(config, named, shape)
    _check_layers(config, named, shape)
    _check_names(config, named, shape)
    _check_frozen(config, named, shape, tuner)
    _check_shapes(config, named, shape)


def _check_keys(config: Config, named: NamedArrays, shape: LayerArrays) -> None:
    own = {"exact": False, **key_values(config.tuner, shape)}
    other = {key: value for key, value in named.keys.items() if value != own[key]}
    if other:
        theirs, ours = (", ".join(f"{key} {_word(values[key])}" for key in other) for values in (other, own))
        raise ModelError(
            f"tuner.start_from {config.tuner.start_from} was trained with {theirs}, but section tuner has {ours}; set "
            f"{' '.join(f'tuner.{key}={_word(value)}' for key, value in other.items())}"
        )


def _check_layers(config: Config, named: NamedArrays, shape: LayerArrays) -> None:
    last, others = max(named.arrays), named.num_layers
    if last < shape.num_layers and others in (None, shape.num_layers):
        return
    theirs = f"changes layer {last}" if others is None else f"was trained on a model of {others} layers"
    raise ModelError(
        f"tuner.start_from {config.tuner.start_from} {theirs}, but the model {config.model.location} has {shape.num_layers} "
        f"layers; {_same(config)}"
    )


def _check_names(config: Config, named: NamedArrays, shape: LayerArrays) -> None:
    source, kind = config.tuner.start_from, config.tuner.kind
    theirs, ours = (list(dict.fromkeys(names)) for names in (_names(named), (name for name, _ in shape.arrays)))
    if set(theirs) <= set(ours) and (kind in LEAVE_ALONE or set(theirs) == set(ours)):
        return
    if kind not in LEAVE_ALONE:
        raise ModelError(
            f"tuner.start_from {source} holds {listed(theirs)}, but this run trains {listed(ours)}; {_same(config)}"
        )
    maps, own = (list(dict.fromkeys(name.rpartition(".")[0] for name in names)) for names in (theirs, ours))
    raise ModelError(
        f"tuner.start_from {source} changes {listed(maps)}, but this run {listed(own)}, so a part would be lost; set "
        f"tuner.targets=[{','.join(maps)}], or {_same(config)}"
    )


def _check_frozen(config: Config, named: NamedArrays, shape: LayerArrays, tuner: Tuner) -> None:
    for layer, parts in named.arrays.items():
        for name, array in tuner.untrained(shape, layer).items():
            if name in parts and not np.array_equal(parts[name], array):
                raise ModelError(
                    f"tuner.start_from {config.tuner.start_from} was trained with another {name} than this run, in which it is "
                    f"frozen, so it would start elsewhere; {_FROZEN[config.tuner.kind]}"
                )


def _check_shapes(config: Config, named: NamedArrays, shape: LayerArrays) -> None:
    wanted = dict(shape.arrays)
    for parts in named.arrays.values():
        for name, array in parts.items():
            if array.shape == wanted[name]:
                continue
            if name.endswith(VECTOR) and _inward(array.shape) != _inward(wanted[name]):
                raise _other_side(config, named, name, inward=_inward(array.shape))
            raise ModelError(
                f"tuner.start_from {config.tuner.start_from} has {name} of shape {array.shape}, but the model "
                f"{config.model.location} takes {wanted[name]}; {_same(config)}"
            )


def _inward(dims: tuple[int, ...]) -> bool:
    """Whether a vector of IA³ scales a map's input."""
    return dims[0] == 1


def _other_side(config: Config, named: NamedArrays, name: str, *, inward: bool) -> ModelError:
    theirs, ours = ("input", "output") if inward else ("output", "input")
    shapes = {name: array.shape for parts in named.arrays.values() for name, array in parts.items()}
    changed = name.removesuffix(f".{VECTOR}")
    feedforward = ",".join(name.removesuffix(f".{VECTOR}") for name, dims in shapes.items() if _inward(dims))
    return ModelError(
        f"tuner.start_from {config.tuner.start_from} scales the {theirs} of {changed}, but this run its {ours}; set "
        f"tuner.feedforward_targets=[{feedforward}]"
    )


def _names(named: NamedArrays) -> list[str]:
    return [name for parts in named.arrays.values() for name in parts]


def _same(config: Config) -> str:
    adapter = "an adapter or " if config.tuner.kind in ("soft_prompt", *LEAVE_ALONE) else ""
    return f"start from {adapter}a run of the same model"


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
