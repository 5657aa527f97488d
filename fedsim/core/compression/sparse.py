"""A share of the entries: the largest (Stich et al. 2018, arXiv 1809.07599), or a random draw of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedsim.core.compression import indices
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS, Codec, numbers, written


class _Some(Codec):
    """Values in the number format of the array.

    Parameters
    ----------
    share
        Share of the entries that are sent, rounded up to a whole number.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    @classmethod
    def of(cls, spec: Any, params: Any = None) -> Codec:
        """Build the codec with ``share``."""
        return cls(spec.share)

    def count(self, size: int) -> int:
        """Return how many of ``size`` entries are sent."""
        return min(size, math.ceil(self._share * size))


@CODECS.register("top_k")
class TopK(_Some):
    """The entries of the largest magnitude; of equal ones the first. Their positions come behind their values."""

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return values and positions."""
        positions_K = _largest(np.abs(array_F), self.count(len(array_F)))
        return written(array_F[positions_K], array_F.dtype) + indices.positions_to_bytes(positions_K, len(array_F))

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the values at their positions, and zero elsewhere."""
        value_K = numbers(payload, dtype, self.count(blocks.size))
        array_F = np.zeros(blocks.size, dtype)
        array_F[indices.positions_from_bytes(payload[value_K.nbytes :], blocks.size)] = value_K
        return array_F

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the bytes of values and of the positions that take the most."""
        count = self.count(blocks.size)
        return count * itemsize + indices.most_bytes(blocks.size, count)


@CODECS.register("random_k")
class RandomK(_Some):
    """Entries drawn at random for each message, of which a seed travels in place of positions.

    Parameters
    ----------
    scaled
        Divide by the share that is sent, which makes the codec unbiased; where losses are added to the next change, they are
        not to be made up for twice. A change that its format then does not hold cannot be sent.
    """

    _SEED_BYTES = 8

    def __init__(self, share: float, *, scaled: bool = True) -> None:
        super().__init__(share)
        self._scaled = scaled

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the seed of the draw and the values."""
        seed = int(rng.integers(2**64, dtype=np.uint64))
        value_K = array_F[self._drawn(seed, blocks.size)]
        if self._scaled and len(value_K):
            with np.errstate(over="ignore"):  # infinite, which is found as what cannot be sent
                value_K = value_K * value_K.dtype.type(blocks.size / len(value_K))
        return seed.to_bytes(self._SEED_BYTES, "little") + written(value_K, array_F.dtype)

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the values where the seed puts them, and zero elsewhere."""
        seed = int.from_bytes(payload[: self._SEED_BYTES], "little")
        array_F = np.zeros(blocks.size, dtype)
        array_F[self._drawn(seed, blocks.size)] = numbers(payload, dtype, offset=self._SEED_BYTES)
        return array_F

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the bytes of seed and values."""
        return self._SEED_BYTES + self.count(blocks.size) * itemsize

    def with_feedback(self) -> Codec:
        """Return the codec without the factor."""
        return RandomK(self._share, scaled=False)

    def _drawn(self, seed: int, size: int) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64(seed))
        return (
            np.sort(rng.choice(size, self.count(size), replace=False, shuffle=False)) if size else np.empty(0, np.int64)
        )


def _largest(size_F: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending positions of the largest entries; a partition of positions would leave ties to the processor."""
    if not count or count == len(size_F):
        return np.arange(count)
    least = np.partition(size_F, len(size_F) - count)[len(size_F) - count]
    above_F = size_F > least
    equal = np.flatnonzero(size_F == least)
    above_F[equal[: count - np.count_nonzero(above_F)]] = True
    return np.flatnonzero(above_F)
