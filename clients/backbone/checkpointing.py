"""Layers that are computed again for their gradients: ``model.gradient_checkpointing``.

A pass with gradients keeps what enters each layer alone (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
Layers run again in the backward pass, when what a pass puts into them is gone: the tuner's changes, the choice of rows in the
top layer, the number format of products. So each layer's second run gets these back as they were in its first. Prompts need
nothing: they come as an argument of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clients.backbone.offloading import forward_as
from clients.backbone.products import HalfProducts

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Where a module keeps its hooks; a tuner's have no other handle that could put them back."""


class CheckpointedLayers:
    """Layers that can keep nothing but their input during a pass.

    Parameters
    ----------
    layers
        Layers of one model.
    half
        Their linear maps.
    """

    def __init__(self, layers: nn.ModuleList, half: HalfProducts) -> None:
        self._layers, self._half = layers, half

    @contextmanager
    def active(self) -> Iterator[None]:
        """Checkpoint the layers in this block."""
        with ExitStack() as stack:
            for layer in self._layers:
                stack.enter_context(forward_as(layer, partial(self._run, layer, layer.forward)))
            yield

    def _run(
        self, layer: nn.Module, forward: Callable[..., Any], hidden: Tensor, *arguments: Any, **kwargs: Any
    ) -> Any:
        if not torch.is_grad_enabled():
            return forward(hidden, *arguments, **kwargs)

        def run(hidden: Tensor, *arguments: Any, **kwargs: Any) -> Any:
            # A tensor of its own for each run: tuners take the same one for work that they have done (PackedRows).
            return forward(hidden.view_as(hidden), *arguments, **kwargs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _AsItWas(layer, self._half)

        # Random numbers are drawn with dropout alone.
        how: dict[str, Any] = {"use_reentrant": False, "context_fn": contexts, "preserve_rng_state": layer.training}
        return checkpoint(run, hidden, *arguments, **how, **kwargs)


class _AsItWas:
    """Gives a layer back the hooks inside it and the number format of now; each time that a ``with`` block begins."""

    def __init__(self, layer: nn.Module, half: HalfProducts) -> None:
        self._modules = [module for module in layer.modules() if module is not layer]
        self._half, self._on = half, half.on
        self._hooks = self._present()
        self._others: list[tuple[list[dict[int, Any]], bool]] = []

    def __enter__(self) -> None:
        self._others.append((self._present(), self._half.on))
        self._put(self._hooks, self._on)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._put(*self._others.pop())

    def _present(self) -> list[dict[int, Any]]:
        return [dict(getattr(module, name)) for module in self._modules for name in _HOOKS]

    def _put(self, hooks: list[dict[int, Any]], on: bool) -> None:
        self._half.on = on
        places = (getattr(module, name) for module in self._modules for name in _HOOKS)
        for place, wanted in zip(places, hooks, strict=True):
            if place != wanted:
                place.clear()
                place.update(wanted)
