"""Passes over layers that are on several devices: what enters a layer is brought to its device, what leaves the last one goes
back to the first.

Hidden states cross where a run of layers begins. Masks, positions and rotary angles, which all layers of a pass share, are
copied once for each device. Copies are part of the graph of a pass, so gradients cross in the other direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from clients.backbone.offloading import OffloadedLayers
from clients.backbone.placement import Placement
from clients.tuners.prefix import Attend, AttentionHook
from clients.tuners.prompt_dropout import PromptMask

H = TypeVar("H", bound=AttentionHook)


class PlacedLayers:
    """The layers of a model, each where its placement says.

    Parameters
    ----------
    layers
        All layers, from the lowest.
    running
        Returns the layers that the model runs now, which may be a part of them.
    """

    def __init__(self, layers: nn.ModuleList, running: Callable[[], nn.ModuleList], placement: Placement) -> None:
        self._running = running
        first = placement.first
        self._elsewhere = [
            (layer, device) for layer, device in zip(layers, placement.of_layers, strict=True) if device != first
        ]
        self._first = first
        self._offloaded = OffloadedLayers(layers, placement.of_layers) if placement.offload else None

    @contextmanager
    def active(self, *, run_again: bool) -> Iterator[None]:
        """Let a pass cross devices in this block.

        It is entered behind what tuners change in a pass: what they put before a layer is on the first device; and before what
        runs layers again.

        Parameters
        ----------
        run_again
            Whether layers are computed again for their gradients.
        """
        shared = _Copies()
        with ExitStack() as stack:
            if self._offloaded is not None:
                stack.enter_context(self._offloaded.active(run_again=run_again))
            for layer, device in self._elsewhere:
                hook = _entering(device, shared)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if self._elsewhere:
                # Before all other hooks, which find the result on the first device.
                last = self._running()[-1]
                stack.callback(last.register_forward_hook(self._leave, prepend=True).remove)
            yield

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0].to(self._first), *output[1:])
        return output.to(self._first)


class _Copies:
    """Copies of the tensors that layers of one pass share."""

    def __init__(self) -> None:
        # With each copy its original: as long as that lives, no other tensor has its identity.
        self._made: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device, value: Any) -> Any:
        """Return a value, its tensors on a device."""
        if isinstance(value, Tensor):
            key = (id(value), device)
            if key not in self._made:
                self._made[key] = (value, value.to(device))
            return self._made[key][1]
        if type(value) in (tuple, list):
            return type(value)(self.on(device, part) for part in value)
        return value


def _entering(device: torch.device, shared: _Copies) -> Callable[..., tuple[Any, ...]]:
    def enter(module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        hidden, *others = arguments  # hidden states are another tensor for each layer
        arguments = (hidden.to(device), *(shared.on(device, other) for other in others))
        return arguments, {name: shared.on(device, value) for name, value in kwargs.items()}

    return enter


class ByDevice(Generic[H]):
    """Attention of layers that are on several devices: each has a hook of its own.

    Parameters
    ----------
    hooks
        For every device that holds layers.
    """

    def __init__(self, hooks: Mapping[torch.device, H], placement: Placement) -> None:
        self.hooks, self._of_layers = hooks, placement.of_layers

    def attend(self, plain: Attend, module: nn.Module, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Compute the attention of layer ``module.layer_idx``."""
        device = self._of_layers[module.layer_idx]  # type: ignore[index]
        return self.hooks[device].attend(plain, module, *arguments, **kwargs)


def by_device(
    placement: Placement,
    prompts: tuple[Tensor, tuple[int, ...], PromptMask | None],
    make: Callable[[torch.device, Tensor, tuple[int, ...], PromptMask | None], H],
) -> ByDevice[H]:
    """Return the attention of a pass.

    Parameters
    ----------
    prompts
        Prompts [C, L, K, H, P, D] on the first device, the layer of each, and what examples see of them.
    make
        Returns the attention of a device, from its part of these.
    """
    prompt_CLKHPD, layers, mask = prompts
    masks: list[PromptMask | None] = [None] * len(placement.devices)
    if mask is not None:
        kept = placement.shared_out(mask.kept_BLKHPD, layers)
        masks = [PromptMask(kept_BLKHPD, mask.scale) for _, kept_BLKHPD, _ in kept]
    parts = zip(placement.shared_out(prompt_CLKHPD, layers), masks, strict=False)  # the first may hold no layers
    return ByDevice({device: make(device, own, there, seen) for (device, own, there), seen in parts}, placement)
