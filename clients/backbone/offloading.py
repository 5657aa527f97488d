"""Frozen weights of the layers that rest in main memory, and are on the GPU while their layer runs: ``model.offload``.

Before a layer runs its weights are copied to its device, and afterwards they are let go of. What a pass keeps for its gradients
names weights instead of holding them: they are copied again, one by one, as gradients ask for them. With gradient checkpointing
the layer runs again instead, and its weights come again with it.

Copies are ordered with the work that needs them, as both are on the same stream; none is made ahead of its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from clients.backbone.quantized import SCALE


def at_rest(weight: Tensor, device: torch.device) -> Tensor:
    """Return a weight in main memory, pinned if its copies go to a GPU, so that they do not wait for each other."""
    return weight.pin_memory() if device.type == "cuda" else weight


@dataclass(frozen=True)
class _Place:
    """An attribute of a module that is a weight."""

    module: nn.Module
    name: str
    resting: Tensor
    device: torch.device

    def brought(self) -> Tensor:
        """Return a copy on the device."""
        return self.resting.to(self.device, non_blocking=True, copy=True)

    def put(self, weight: Tensor) -> None:
        """Let the module compute with a weight."""
        if self.name in self.module._parameters:
            # Not by setattr, which takes parameters alone: a copy needs to be none.
            self.module._parameters[self.name] = weight  # type: ignore[assignment]
        else:
            setattr(self.module, self.name, weight)


@dataclass(frozen=True)
class _Named:
    """Stands for a view of a weight among what a pass keeps."""

    place: _Place
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def brought(self) -> Tensor:
        """Return the view, of a copy on the device."""
        return self.place.brought().as_strided(self.size, self.stride, self.offset)


class OffloadedLayers:
    """Layers whose weights come when they run.

    Parameters
    ----------
    layers
        Layers of one model, with their weights in main memory.
    devices
        Where each runs.
    """

    def __init__(self, layers: nn.ModuleList, devices: Sequence[torch.device]) -> None:
        self._layers = [(layer, list(_places(layer, device))) for layer, device in zip(layers, devices, strict=True)]

    @contextmanager
    def active(self, *, run_again: bool) -> Iterator[None]:
        """Bring the weights of each layer in this block.

        Parameters
        ----------
        run_again
            Whether layers are computed again for their gradients: then nothing is kept of them in any case.
        """
        with ExitStack() as stack:
            for layer, places in self._layers:
                stack.enter_context(forward_as(layer, partial(_run, places, layer.forward, run_again)))
            yield


@contextmanager
def forward_as(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a layer run another function in this block."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


def _places(layer: nn.Module, device: torch.device) -> Iterator[_Place]:
    for module in layer.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                yield _Place(module, name, weight, device)
        scales = getattr(module, f"weight{SCALE}", None)  # of a quantised map, no parameter
        if isinstance(scales, Tensor):
            yield _Place(module, f"weight{SCALE}", scales, device)


def _run(places: list[_Place], forward: Callable[..., Any], run_again: bool, *arguments: Any, **kwargs: Any) -> Any:
    own: dict[int, _Place] = {}
    try:
        for place in places:
            weight = place.brought()
            own[weight.untyped_storage()._cdata] = place
            place.put(weight)
        if run_again or not torch.is_grad_enabled():
            return forward(*arguments, **kwargs)

        def keep(tensor: Tensor) -> Tensor | _Named:
            place = own.get(tensor.untyped_storage()._cdata)
            if place is None:
                return tensor
            return _Named(place, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

        with saved_tensors_hooks(keep, _taken):
            return forward(*arguments, **kwargs)
    finally:
        for place in places:
            place.put(place.resting)


def _taken(kept: Tensor | _Named) -> Tensor:
    return kept.brought() if isinstance(kept, _Named) else kept
