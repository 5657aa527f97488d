"""Half precision within the backbone, while prompts, heads and losses keep float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_FLOAT16_SCALE = 1024.0
"""What gradients are multiplied by on their way back through float16, whose smallest number is 6e-8: those of hidden states
would be lost in it. Its largest, 65504, stays far away. A power of two leaves no trace in the other bits."""


class Precision:
    """The number format that a pass through the backbone computes in.

    Parameters
    ----------
    weights
        Number format of the frozen weights.
    autocast
        ``off``, or the number format of matrix products: ``bfloat16`` or ``float16``.
    device
        Where the backbone is.
    """

    def __init__(self, weights: torch.dtype, autocast: str, device: torch.device) -> None:
        self._weights, self._device = weights, device
        self._products = weights if autocast == "off" else getattr(torch, autocast)
        self._scale = _FLOAT16_SCALE if self._products == torch.float16 else 1.0

    def products(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products have their number format."""
        if self._products == self._weights:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._products)

    def enter(self, prompt_CLKHPD: Tensor) -> Tensor:
        """Return the prompts as they go into a pass; what comes back to them is freed of the scale of :meth:`leave`."""
        return prompt_CLKHPD if self._scale == 1.0 else _ScaledGradient.apply(prompt_CLKHPD, 1.0 / self._scale)

    def leave(self, hidden_BD: Tensor) -> Tensor:
        """Return hidden states as they come out of a pass, in the weights' precision, their gradient scaled from here on."""
        hidden_BD = hidden_BD.to(self._weights)
        return hidden_BD if self._scale == 1.0 else _ScaledGradient.apply(hidden_BD, self._scale)


class _ScaledGradient(torch.autograd.Function):
    """What goes through stays as it is; its gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0] * ctx.scale, None
