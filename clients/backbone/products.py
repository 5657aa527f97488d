"""Frozen linear maps in half precision, everything else in float32: ``model.products``.

Matrix products of frozen weights are most of a pass, and processors with instructions for bfloat16 compute them at twice the
speed or more. Here the weights of the layers' linear maps are rounded once, a map rounds its input, and its output, which
the processor sums in float32, is rounded and goes on in float32. Norms, attention, what is trained, its gradients, optimizer
and sums stay in float32, unlike with ``model.autocast``, which on a CPU also runs attention in half precision, where its kernel
is several times slower.

Between the two maps of an encoder's feed-forward part the activation runs in half precision: its input is a rounded output and
its result the next map's rounded input, so that nothing changes but the bytes moved. Gated parts, and activations that are
several functions, would round more often: there it runs in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from clients.backbone.families import Family

_ONE_FUNCTION = ("gelu", "relu", "silu")
"""Activations that are one kernel, which computes in float32 and rounds its result once."""


def linear_maps(layers: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear maps of a model's layers, by their names within the list."""
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


class HalfProducts:
    """Switches a model's linear maps, whose weights are in half precision, between half precision and float32.

    Outside of :meth:`active` they compute in float32, with the same rounded weights.

    Parameters
    ----------
    layers
        The layers; maps whose weights are in ``plain`` are left alone.
    plain
        Number format of everything else.
    family
        Tells which maps an activation follows.
    activation
        The model's ``hidden_act``.
    narrow
        Whether these maps leave their output in half precision: not if a tuner acts on it.
    """

    def __init__(
        self, layers: nn.ModuleList, plain: torch.dtype, family: Family, activation: str, *, narrow: bool
    ) -> None:
        self.on = False
        self.plain = self.format = plain
        narrow = narrow and activation in _ONE_FUNCTION
        for name, module in linear_maps(layers):
            weight: Tensor = module.weight  # type: ignore[assignment]
            if weight.dtype != plain:
                self.format = weight.dtype
                module.__class__ = _HalfConv1D if isinstance(module, Conv1D) else _HalfLinear
                module.products = self  # type: ignore[assignment]
                module.narrow = narrow and name.endswith(family.before_activation)  # type: ignore[assignment]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute in half precision in this block."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


class _HalfLinear(nn.Linear):
    products: HalfProducts
    narrow: bool

    def forward(self, input: Tensor) -> Tensor:
        return _product(self, input, self.weight, self.bias)


class _HalfConv1D(Conv1D):
    products: HalfProducts
    narrow: bool

    def forward(self, x: Tensor) -> Tensor:
        return _product(self, x, self.weight.mT, self.bias)


def _product(map: _HalfLinear | _HalfConv1D, input: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    plain = map.products.plain
    if not map.products.on:
        return functional.linear(input.to(plain), weight_OI.to(plain), None if bias_O is None else bias_O.to(plain))
    output = functional.linear(input.to(weight_OI.dtype), weight_OI, bias_O)
    return output if map.narrow else output.to(plain)
