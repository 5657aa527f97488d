"""Frozen matrices as small integers and scales: ``model.quantize``.

Each row of a matrix (one output of a linear map) is divided by scales, so that its numbers lie in the range of the integers,
and rounded to the nearest. int8 has one scale a row, int4 one for every 32 numbers of a row, and two integers to a byte.
Scales are symmetric, without an offset: the greatest absolute number, divided by half the number of steps, as in torchao's
weight-only int8, and then rounded to bfloat16, so that an integer times its scale is exact in float32. The greatest number
itself may lie somewhat more than half a step outside, and is cut.

torchao's own tensors would not do: a linear map of them keeps its matrix in float32 for the gradient, one for each layer of a
pass, and their int4 has no kernel for CPUs (0.18).

Shape suffixes: O outputs, I inputs, G groups of a row, S numbers of a group, H half of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clients.backbone.quantized_sizes import MULTIPLE, group_size
from fedsim.core.errors import ModelError

SCALE = "_scale"
"""What the name of a matrix is followed by in the name of its scales."""
_LEVELS = {"int8": 255, "int4": 15}
"""Steps between the least and the greatest integer."""


def quantized(weight_OI: Tensor, kind: str, name: str) -> tuple[Tensor, Tensor]:
    """Return a matrix as integers and scales.

    Parameters
    ----------
    weight_OI
        Numbers of any format.
    kind
        ``int8`` or ``int4``.
    name
        Name of the matrix for errors.

    Returns
    -------
    tuple
        int8 [O, I], or uint8 [O, I / 2], whose low and high halves hold the left and the right half of a row, each integer
        plus 8; and the bfloat16 scales [O, G].

    Raises
    ------
    ModelError
        If rows cannot be cut into groups, as the number of inputs is no multiple of 16, or a number is not finite.
    """
    rows, columns = weight_OI.shape
    if kind == "int4" and columns % MULTIPLE:
        raise ModelError(
            f"{name} has {columns} inputs, but model.quantize=int4 needs a multiple of {MULTIPLE}; set model.quantize=int8"
        )
    groups_OGS = weight_OI.float().reshape(rows, -1, group_size(kind, columns))
    scale_OG1 = (groups_OGS.abs().amax(2, keepdim=True) * (2 / _LEVELS[kind])).bfloat16()
    if not torch.isfinite(scale_OG1).all():
        raise ModelError(f"{name} holds a number that is not finite, which model.quantize={kind} cannot scale")
    least, greatest = -(_LEVELS[kind] + 1) // 2, _LEVELS[kind] // 2
    # A row of zeros has the scale zero, and any integers.
    whole_OGS = (groups_OGS / scale_OG1.float().clamp_min(torch.finfo(torch.float32).tiny)).round_()
    whole_OI = whole_OGS.clamp_(least, greatest).view(rows, columns).to(torch.int8)
    if kind == "int8":
        return whole_OI, scale_OG1.squeeze(2)
    left_OH, right_OH = (whole_OI + 8).view(torch.uint8).chunk(2, dim=1)
    return left_OH | (right_OH << 4), scale_OG1.squeeze(2)


def dense(whole: Tensor, scale_OG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers [O, I] that integers and scales stand for, each rounded once to ``dtype``."""
    scale_OG = scale_OG.to(dtype)
    if whole.dtype == torch.int8:
        return whole.to(dtype).mul_(scale_OG)
    dense_O2H = torch.empty((len(whole), 2, whole.shape[1]), dtype=dtype, device=whole.device)
    halves = (torch.bitwise_and(whole, 15), torch.bitwise_right_shift(whole, 4))
    for place, (half_OH, own_OG) in enumerate(zip(halves, scale_OG.chunk(2, dim=1), strict=True)):
        groups = (own_OG.shape[1], -1)
        whole_OGS = half_OH.to(dtype).sub_(8).unflatten(1, groups)
        torch.mul(whole_OGS, own_OG.unsqueeze(2), out=dense_O2H[:, place].unflatten(1, groups))
    return dense_O2H.flatten(1)
