"""Numbers of 16 bits, each rounded to the nearest."""

from __future__ import annotations

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS, Codec, numbers, written
from fedsim.core.compression.scales import Logarithms


class _Halves(Codec):
    feedback = False

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return two bytes an entry."""
        return 2 * blocks.size


@CODECS.register("float16")
class Float16(_Halves):
    """IEEE half precision: 11 bits of precision from 6e-5 to 65504, fewer below; above it a change cannot be sent."""

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the rounded numbers."""
        with np.errstate(over="ignore"):
            return written(array_F, np.float16)

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the numbers."""
        return numbers(payload, np.float16, blocks.size).astype(dtype)

    def for_scales(self) -> Codec:
        """Return logarithms: gains of Adam exceed what the format holds."""
        return Logarithms(self)


@CODECS.register("bfloat16")
class BFloat16(_Halves):
    """The upper half of a float32: its range, with 8 bits of precision."""

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the numbers, rounded to the nearest, ties to even."""
        bits_F = array_F.astype(np.float32, copy=False).view(np.uint32)
        odd_F = bits_F >> 16
        odd_F &= 1
        odd_F += bits_F
        odd_F += 0x7FFF
        odd_F >>= 16
        return written(odd_F, np.uint16)

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the numbers."""
        bits_F = numbers(payload, np.uint16, blocks.size).astype(np.uint32)
        bits_F <<= 16
        return bits_F.view(np.float32).astype(dtype, copy=False)

    def for_scales(self) -> Codec:
        """Return itself: each entry keeps its sign, and its size to within 0.4 %."""
        return self
