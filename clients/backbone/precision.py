"""Half precision inside the backbone; prompts, heads and losses stay in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_FLOAT16_SCALE = 1024.0
"""Loss scale for gradients in float16, whose smallest number is 6e-8: gradients of hidden states would underflow. Its
largest, 65504, stays far away. A power of two changes no other bits."""


class Precision:
    """Number formats of a pass through the backbone.

    Parameters
    ----------
    weights
        Number format of the frozen weights.
    autocast
        ``off``, or the number format of matrix products: ``bfloat16`` or ``float16``.
    maps
        Number format of the layers' linear maps; see :mod:`clients.backbone.products`.
    device
        Device of the backbone.
    """

    def __init__(self, weights: torch.dtype, autocast: str, maps: torch.dtype, device: torch.device) -> None:
        self._weights, self._device = weights, device
        self._products = weights if autocast == "off" else getattr(torch, autocast)
        self._scale = _FLOAT16_SCALE if torch.float16 in (self._products, maps) else 1.0

    def products(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products use their number format."""
        if self._products == self._weights:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._products)

    def enter(self, prompt_CLKHPD: Tensor) -> Tensor:
        """Return prompts for use in a pass; their gradients are unscaled from :meth:`leave`."""
        return prompt_CLKHPD if self._scale == 1.0 else _ScaledGradient.apply(prompt_CLKHPD, 1.0 / self._scale)

    def leave(self, hidden_BD: Tensor) -> Tensor:
        """Return a pass's hidden states in the weights' precision, with gradients scaled from here on."""
        hidden_BD = hidden_BD.to(self._weights)
        return hidden_BD if self._scale == 1.0 else _ScaledGradient.apply(hidden_BD, self._scale)


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0] * ctx.scale, None
