"""Linear maps of a layer by the ends of their names, as PEFT finds its ``target_modules``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.core.deferred import deferred
from fedsim.core.errors import ModelError, listed
from fedsim.core.layout import LayerArrays

if TYPE_CHECKING:
    from torch import nn
    from transformers import pytorch_utils
else:
    nn = deferred("torch.nn")
    pytorch_utils = deferred("transformers.pytorch_utils")

Arrays = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each array of a layer."""


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a layer."""

    name: str
    """Path within the layer."""
    size_in: int
    size_out: int

    def ends_with(self, targets: Iterable[str]) -> bool:
        """Whether its name is one of the targets, or ends with one after a dot."""
        return any(self.name == target or self.name.endswith(f".{target}") for target in targets)


def linear_maps(layer: nn.Module, targets: tuple[str, ...]) -> list[LinearMap]:
    """Return the maps of a layer that ``tuner.targets`` names, in the order of the targets.

    Raises
    ------
    ModelError
        If a target is no linear map of the layer, or two name the same map.
    """
    maps = [_map(name, module) for name, module in layer.named_modules() if _is_linear(module)]
    found: list[LinearMap] = []
    for target in targets:
        own = [one for one in maps if one.ends_with((target,))]
        if not own:
            raise ModelError(
                f"tuner.targets names {target!r}, but no linear map of the model's layers has such a name; use some of: "
                f"{', '.join(one.name for one in maps)}"
            )
        found += own
    if len(set(found)) != len(found):
        raise ModelError(f"tuner.targets {listed(targets)} name a linear map twice; use longer names")
    return found


def same_arrays(layers: nn.ModuleList, targets: tuple[str, ...], arrays: Callable[[LinearMap], Arrays]) -> LayerArrays:
    """Return the arrays of all targets of a layer, which must be alike in all layers.

    Raises
    ------
    ModelError
        If a target is not in every layer, or is no linear map, or differs in shape from layer to layer.
    """
    found = [tuple(array for one in linear_maps(layer, targets) for array in arrays(one)) for layer in layers]
    if len(set(found)) > 1:
        raise ModelError(f"tuner.targets {listed(targets)} differ in shape from layer to layer of the model")
    return LayerArrays(len(layers), found[0])


def hidden_size(layers: nn.ModuleList) -> int:
    """Return the size of the hidden states."""
    return layer_width(layers[0])


def layer_width(layer: nn.Module) -> int:
    """Return the size of a layer's hidden states: the features that its first linear map reads."""
    first = next(module for module in layer.modules() if _is_linear(module))
    return _map("", first).size_in


def _map(name: str, module: nn.Module) -> LinearMap:
    """Return a module's place and size, which a quantised weight's shape does not tell."""
    if isinstance(module, pytorch_utils.Conv1D):
        return LinearMap(name, module.nx, module.nf)
    return LinearMap(name, int(module.in_features), int(module.out_features))  # type: ignore[arg-type]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | pytorch_utils.Conv1D)
