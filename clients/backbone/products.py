"""Frozen linear maps in half precision, everything else in float32: ``model.products``; and quantised ones.

Matrix products of frozen weights are most of a pass, and processors with instructions for bfloat16 compute them at twice the
speed or more. Here the weights of the layers' linear maps are rounded once, a map rounds its input, and its output, which
the processor sums in float32, is rounded and goes on in float32. Norms, attention, what is trained, its gradients, optimizer
and sums stay in float32, unlike with ``model.autocast``, which on a CPU also runs attention in half precision, where its kernel
is several times slower.

Between the two maps of an encoder's feed-forward part the activation runs in half precision: its input is a rounded output and
its result the next map's rounded input, so that nothing changes but the bytes moved. Gated parts, and activations that are
several functions, would round more often: there it runs in float32.

Of a quantised map (``model.quantize``) the integers are all that is kept. Each product makes the numbers that they stand for
anew, in its own number format, and so does its gradient, which would otherwise keep them for every layer of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from clients.backbone.families import Family
from clients.backbone.quantized import SCALE, dense

_STEP, _LARGE = 32, 512
"""Numbers of rows are rounded up to multiples of the first, beyond the second to a 16th of the next power of two. Large passes
without gradients are left alone: those of evaluations are the same every time."""
_ONE_FUNCTION = ("gelu", "relu", "silu")
"""Activations that are one kernel, which computes in float32 and rounds its result once."""


def linear_maps(layers: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear maps of a model's layers, by their names within the list."""
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


class HalfProducts:
    """Switches a model's linear maps, whose weights are in half precision or quantised, between half precision and float32.

    Outside of :meth:`active` they compute in float32, with the same weights.

    Parameters
    ----------
    layers
        The layers; maps whose weights are in the plain format are left alone.
    formats
        Plain number format, that of everything else, and the format in which quantised maps multiply.
    family
        Tells which maps an activation follows.
    activation
        The model's ``hidden_act``.
    narrow
        Whether these maps leave their output in half precision: not if a tuner acts on it.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        formats: tuple[torch.dtype, torch.dtype],
        family: Family,
        activation: str,
        *,
        narrow: bool,
    ) -> None:
        self.on = False
        self.plain = self.format = formats[0]
        narrow = narrow and activation in _ONE_FUNCTION
        for name, module in linear_maps(layers):
            weight: Tensor = module.weight  # type: ignore[assignment]
            if weight.dtype != self.plain:
                whole = not weight.is_floating_point()
                self.format = formats[1] if whole else weight.dtype
                module.__class__ = _KINDS[isinstance(module, Conv1D), whole]
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


class _QuantizedLinear(nn.Linear):
    products: HalfProducts
    narrow: bool

    def forward(self, input: Tensor) -> Tensor:
        return _quantized_product(self, input)


class _QuantizedConv1D(Conv1D):
    products: HalfProducts
    narrow: bool

    def forward(self, x: Tensor) -> Tensor:
        return _quantized_product(self, x)


_KINDS: dict[tuple[bool, bool], type[nn.Module]] = {
    (False, False): _HalfLinear,
    (True, False): _HalfConv1D,
    (False, True): _QuantizedLinear,
    (True, True): _QuantizedConv1D,
}
"""By whether the map is GPT-2's, and whether it is quantised."""


def _quantized_product(map: _QuantizedLinear | _QuantizedConv1D, input: Tensor) -> Tensor:
    products = map.products
    format = products.format if products.on else products.plain
    output = _Dense.apply(input, map.weight, getattr(map, f"weight{SCALE}"), map.bias, format, False)
    return output if map.narrow and products.on else output.to(products.plain)


class _Dense(torch.autograd.Function):
    """A product with a quantised matrix [O, I] or its transpose, whose numbers live as long as the product."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, whole: Tensor, scale_OG: Tensor, bias_O: Tensor | None, format: torch.dtype, back: bool
    ) -> Tensor:
        ctx.save_for_backward(whole, scale_OG)
        ctx.formats, ctx.back = (input.dtype, format), back
        rows = input.flatten(0, -2)
        short = format.itemsize < 4 and input.device.type == "cpu"
        filled = _filled(rows, format) if short else rows.to(format)
        weight = dense(whole, scale_OG, format)
        bias = None if bias_O is None else bias_O.to(format)
        product = functional.linear(filled, weight.mT if back else weight, bias)
        return product[: len(rows)].view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Again such a product, so that spectra have their second derivatives.
        product = _Dense.apply(gradients[0], *ctx.saved_tensors, None, ctx.formats[1], not ctx.back)
        return product.to(ctx.formats[0]), None, None, None, None, None


def _product(map: _HalfLinear | _HalfConv1D, input: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    plain = map.products.plain
    if not map.products.on:
        return functional.linear(input.to(plain), weight_OI.to(plain), None if bias_O is None else bias_O.to(plain))
    output = weight_OI.dtype if map.narrow else plain
    large = not torch.is_grad_enabled() and input.shape[:-1].numel() > _LARGE
    if input.device.type != "cpu" or large:
        return functional.linear(input.to(weight_OI.dtype), weight_OI, bias_O).to(output)
    return _RoundedUp.apply(input, weight_OI, bias_O, output)


class _RoundedUp(torch.autograd.Function):
    """A product whose rows are filled up to one of few numbers.

    oneDNN makes a kernel for each number of rows, which takes as long as several products and is kept with a megabyte of its
    own; passes have hundreds of different numbers of tokens.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight_OI: Tensor, bias_O: Tensor | None, output: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight_OI)
        ctx.format = input.dtype
        rows_XI = input.flatten(0, -2)
        filled_XO = functional.linear(_filled(rows_XI, weight_OI.dtype), weight_OI, bias_O)
        return filled_XO[: len(rows_XI)].to(output).view(*input.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight_OI,) = ctx.saved_tensors
        rows_XO = gradients[0].flatten(0, -2)
        filled_XI = _filled(rows_XO, weight_OI.dtype) @ weight_OI
        return filled_XI[: len(rows_XO)].to(ctx.format).view(*gradients[0].shape[:-1], -1), None, None, None


def _filled(rows_XI: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows in half precision, with rows of zeros behind them up to one of few numbers."""
    count = len(rows_XI)
    step = _STEP if count <= _LARGE else (1 << (count - 1).bit_length()) // 16
    if count % step == 0:
        return rows_XI.to(dtype)
    filled = rows_XI.new_empty((count + step - count % step, rows_XI.shape[1]), dtype=dtype)
    filled[:count].copy_(rows_XI)
    filled[count:].zero_()
    return filled
