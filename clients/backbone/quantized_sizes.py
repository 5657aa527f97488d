"""Sizes of quantised matrices (``model.quantize``), for planning without torch."""

from __future__ import annotations

from math import gcd

GROUP = 32
"""Most numbers of a row that share a scale in int4."""
MULTIPLE = 16
"""What the inputs of a map in int4 are a multiple of: groups have 8 numbers or more, and end where the halves of a row do."""
_SCALE_BYTES = 2


def group_size(kind: str, size_in: int) -> int:
    """Return how many of a row's ``size_in`` numbers share a scale."""
    return size_in if kind == "int8" else gcd(size_in // 2, GROUP)


def matrix_bytes(kind: str, size_out: int, size_in: int) -> int:
    """Return the bytes of a matrix in ``int8`` or ``int4``, scales included."""
    integers = size_in if kind == "int8" else size_in // 2
    return size_out * (integers + _SCALE_BYTES * (size_in // group_size(kind, size_in)))
