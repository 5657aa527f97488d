"""Signs, with the mean magnitude of each block: the scaled sign of EF-SGD (Karimireddy et al. 2019, arXiv 1901.09847)."""

from __future__ import annotations

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS, numbers, written
from fedsim.core.compression.in_blocks import InBlocks

_SCALE = np.dtype(np.float32)


@CODECS.register("sign")
class Sign(InBlocks):
    """One bit an entry; zero counts as positive.

    Parameters
    ----------
    block
        Entries of a block, or ``layer``.
    """

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the mean magnitudes of all blocks, then the signs."""
        mean_B = self.chosen(blocks).means(np.abs(array_F))
        return written(mean_B, _SCALE) + np.packbits(array_F >= 0.0).tobytes()

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the mean magnitudes with the signs."""
        blocks = self.chosen(blocks)
        array_F = blocks.spread(numbers(payload, _SCALE, blocks.count).astype(dtype))
        bits_F = np.unpackbits(numbers(payload, np.uint8, offset=blocks.count * _SCALE.itemsize), count=blocks.size)
        array_F *= 2 * bits_F.view(np.int8) - 1
        return array_F

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the bytes of mean magnitudes and signs."""
        return self.chosen(blocks).count * _SCALE.itemsize + -(-blocks.size // 8)
