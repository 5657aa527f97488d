"""Integers of 8 and 4 bits with stochastic rounding: unbiased, one scale for each block.

After QSGD (Alistarh et al. 2017, arXiv 1610.02132) with the largest magnitude of a block as its scale.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS, Codec, numbers, written
from fedsim.core.compression.in_blocks import InBlocks
from fedsim.core.compression.scales import Logarithms

_SCALE = np.dtype(np.float32)


class _Integers(InBlocks):
    """Steps of a block's largest magnitude / ``levels``; a number between two is rounded up as often as it is near.

    Parameters
    ----------
    block
        Entries of a block, or ``layer``.
    """

    feedback = False
    levels: int

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the steps of all blocks, then the integers."""
        blocks = self.chosen(blocks)
        largest_B = blocks.largest(np.abs(array_F)).astype(np.float64)
        # Rounded up, so that no number is more than ``levels`` steps: cutting it off would bias it.
        step_B = np.where(
            largest_B > 0.0, np.nextafter((largest_B / self.levels).astype(_SCALE), _SCALE.type(np.inf)), 0
        )
        step_F = blocks.spread(np.where(step_B > 0.0, step_B, 1.0).astype(array_F.dtype))
        ratio_F = np.divide(array_F, step_F, out=step_F)
        ratio_F += rng.random(blocks.size, dtype=np.float32)
        # A sum of two float32 may be rounded to the next integer.
        whole_F = np.clip(np.floor(ratio_F, out=ratio_F), -self.levels, self.levels, out=ratio_F).astype(np.int8)
        return written(step_B, _SCALE) + self._packed(whole_F)

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return steps times integers."""
        blocks = self.chosen(blocks)
        step_B = numbers(payload, _SCALE, blocks.count)
        array_F = blocks.spread(step_B.astype(dtype))
        array_F *= self._unpacked(numbers(payload, np.uint8, offset=blocks.count * _SCALE.itemsize), blocks.size)
        return array_F

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the bytes of steps and integers."""
        blocks = self.chosen(blocks)
        return blocks.count * _SCALE.itemsize + self._packed_bytes(blocks.size)

    def for_scales(self) -> Codec:
        """Return logarithms."""
        return Logarithms(self)

    def _packed(self, whole_F: np.ndarray) -> bytes:
        return whole_F.tobytes()

    def _unpacked(self, bytes_N: np.ndarray, size: int) -> np.ndarray:
        return bytes_N.view(np.int8)

    def _packed_bytes(self, size: int) -> int:
        return size


@CODECS.register("int8")
class Int8(_Integers):
    """255 values, a byte each."""

    levels = 127


@CODECS.register("int4")
class Int4(_Integers):
    """15 values, two to a byte."""

    levels = 7

    def _packed(self, whole_F: np.ndarray) -> bytes:
        nibble_F = np.zeros(len(whole_F) + len(whole_F) % 2, np.uint8)
        np.add(whole_F, 8, out=nibble_F[: len(whole_F)], casting="unsafe")
        return (nibble_F[::2] << 4 | nibble_F[1::2]).tobytes()

    def _unpacked(self, bytes_N: np.ndarray, size: int) -> np.ndarray:
        nibble_F = np.empty(2 * len(bytes_N), np.int8)
        nibble_F[::2], nibble_F[1::2] = bytes_N >> 4, bytes_N & 15
        nibble_F -= 8
        return nibble_F[:size]

    def _packed_bytes(self, size: int) -> int:
        return -(-size // 2)
