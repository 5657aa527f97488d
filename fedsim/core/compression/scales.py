"""Positive arrays by which the server divides: their logarithms travel, so that every entry arrives positive."""

from __future__ import annotations

import struct

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Codec, Plain

_AS_THEY_ARE, _LOGARITHMS, _ZEROS = 0, 1, 2
_HEAD = struct.Struct("<Bf")


class Logarithms(Codec):
    """Writes log2 of each entry less their mean with another codec, so that errors are relative; ours.

    An array of zeros (no step was taken) is one byte. One with some zeros, which have no logarithm, travels as it is.
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self._codec = codec

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return what was done in one byte, the mean, and the payload of the other codec."""
        if not array_F.any():
            return bytes([_ZEROS])
        if array_F.min() <= 0.0:
            return bytes([_AS_THEY_ARE]) + Plain().encode(array_F, blocks, rng)
        log_F = np.log2(array_F.astype(np.float64, copy=False))
        mean = np.float32(log_F.mean())
        log_F -= mean
        return _HEAD.pack(_LOGARITHMS, mean) + self._codec.encode(log_F.astype(array_F.dtype), blocks, rng)

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the array."""
        if payload[0] == _ZEROS:
            return np.zeros(blocks.size, dtype)
        if payload[0] == _AS_THEY_ARE:
            return Plain().decode(payload[1:], blocks, dtype)
        _, mean = _HEAD.unpack_from(payload)
        log_F = self._codec.decode(payload[_HEAD.size :], blocks, np.dtype(np.float64))
        limits = np.finfo(dtype)
        return np.clip(np.exp2(log_F + mean), limits.smallest_normal, limits.max).astype(dtype)

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the bytes of the logarithms."""
        return _HEAD.size + self._codec.most_bytes(blocks, itemsize)
