"""Copy rows of packed tokens to padded slots and back, with gradients that are plain copies.

PyTorch's own gradient of ``index_select`` adds up in no fixed order on a GPU. Here every row has a slot of its own, so there
is nothing to add.

Shape suffixes: Z packed tokens, N rows, S slots with padding, B examples; X stands for all other axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def apart(tensor_ZX: Tensor, rows_S: Tensor, slots_Z: Tensor, padding: Tensor) -> Tensor:
    """Copy rows to slots.

    Parameters
    ----------
    rows_S
        Row of each slot; padding slots may hold any row.
    slots_Z
        Slot of each row.
    padding
        The slots that are padding.
    """
    return _Apart.apply(tensor_ZX, rows_S, slots_Z, padding)


def together(tensor_SX: Tensor, rows_S: Tensor, slots_Z: Tensor, padding: Tensor) -> Tensor:
    """Copy slots back to rows, the reverse of :func:`apart`; padding is dropped and gets zero gradient."""
    return _Together.apply(tensor_SX, rows_S, slots_Z, padding)


def take_rows(tensor_ZX: Tensor, rows_B: Tensor) -> Tensor:
    """Select rows of a tensor, without duplicates."""
    return _Rows.apply(tensor_ZX, rows_B)


def spread_rows(tensor_NX: Tensor, rows_Z: Tensor) -> Tensor:
    """Select rows, each as often as it is asked for; gradients add up in a fixed order."""
    return _Spread.apply(tensor_NX, rows_Z)


def add_rows(count: int, places_R: Tensor, added_RX: Tensor) -> Tensor:
    """Return ``count`` rows, each the sum of those of ``added_RX`` that have its place, added up in a fixed order."""
    total_X = added_RX.new_zeros((count, *added_RX.shape[1:]))
    if added_RX.device.type == "cpu":
        return total_X.index_add(0, places_R, added_RX)
    # index_add has no fixed order on a GPU; this sorts the places first.
    return total_X.index_put((places_R,), added_RX, accumulate=True)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_ZX: Tensor, rows_B: Tensor) -> Tensor:
        ctx.save_for_backward(rows_B)
        ctx.count = len(tensor_ZX)
        return tensor_ZX.index_select(0, rows_B)

    @staticmethod
    def backward(ctx: Any, *grad_BX: Tensor) -> tuple[Tensor, None]:
        (rows_B,) = ctx.saved_tensors
        grad_ZX = grad_BX[0].new_zeros((ctx.count, *grad_BX[0].shape[1:]))
        grad_ZX[rows_B] = grad_BX[0]
        return grad_ZX, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_NX: Tensor, rows_Z: Tensor) -> Tensor:
        ctx.save_for_backward(rows_Z)
        ctx.count = len(tensor_NX)
        return tensor_NX.index_select(0, rows_Z)

    @staticmethod
    def backward(ctx: Any, *grad_ZX: Tensor) -> tuple[Tensor, None]:
        (rows_Z,) = ctx.saved_tensors
        return add_rows(ctx.count, rows_Z, grad_ZX[0]), None


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_ZX: Tensor, rows_S: Tensor, slots_Z: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(slots_Z)
        return tensor_ZX.index_select(0, rows_S)

    @staticmethod
    def backward(ctx: Any, *grad_SX: Tensor) -> tuple[Tensor, None, None, None]:
        (slots_Z,) = ctx.saved_tensors
        return grad_SX[0].index_select(0, slots_Z), None, None, None


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_SX: Tensor, rows_S: Tensor, slots_Z: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(rows_S, padding)
        return tensor_SX.index_select(0, slots_Z)

    @staticmethod
    def backward(ctx: Any, *grad_ZX: Tensor) -> tuple[Tensor, None, None, None]:
        rows_S, padding = ctx.saved_tensors
        # A gather, not a scatter: deterministic on a GPU.
        return grad_ZX[0].index_select(0, rows_S).index_fill_(0, padding, 0.0), None, None, None
