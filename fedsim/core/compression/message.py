"""Messages: a header, and a codec's payload, which zstd may shorten."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Codec
from fedsim.core.errors import PluginError

HEADER = struct.Struct("<2sHBBI")
"""Magic, the codec's name (16 bits of its CRC-32), bytes of a number, whether zstd follows, entries: 10 bytes."""
_MAGIC = b"fc"
_AS_IT_IS, _ZSTD = 0, 1
_LENGTH = struct.Struct("<I")
"""Length of the payload that zstd shortened."""


@dataclass(frozen=True)
class Packer:
    """Writes and reads messages of one codec.

    Parameters
    ----------
    name
        The codec's.
    zstd
        Shorten payloads, where that makes them shorter.
    """

    codec: Codec
    name: str
    zstd: bool = False

    def pack(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the message of a finite array; see :meth:`~fedsim.core.compression.codec.Codec.encode`."""
        payload, form = self.codec.encode(array_F, blocks, rng), _AS_IT_IS
        if not isinstance(payload, bytes):
            raise PluginError(f"the codec {self.name} must write bytes, not {type(payload).__name__}")
        if self.zstd:
            shorter = _LENGTH.pack(len(payload)) + _zstd().compress(payload, asbytes=True)
            if len(shorter) < len(payload):
                payload, form = shorter, _ZSTD
        return HEADER.pack(_MAGIC, self._mark, array_F.itemsize, form, len(array_F)) + payload

    def unpack(self, message: bytes, blocks: Blocks) -> np.ndarray:
        """Return the array of a message, in the number format that it had.

        Raises
        ------
        ValueError
            If the message is of another codec or another vector.
        """
        magic, mark, itemsize, form, size = HEADER.unpack_from(message)
        if (magic, mark, size) != (_MAGIC, self._mark, blocks.size) or itemsize not in (4, 8):
            raise ValueError(f"this is no message of {blocks.size} entries by the codec {self.name}")
        payload = memoryview(message)[HEADER.size :]
        if form == _ZSTD:
            (length,) = _LENGTH.unpack_from(payload)
            payload = memoryview(_zstd().decompress(payload[_LENGTH.size :], length, asbytes=True))
        array_F = self.codec.decode(payload, blocks, np.dtype(f"f{itemsize}"))
        if np.shape(array_F) != (size,) or array_F.dtype.itemsize != itemsize:
            raise PluginError(f"the codec {self.name} must read {size} numbers of {itemsize} bytes, as it was given")
        return array_F

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the length of the longest message; without zstd most codecs write no other."""
        return HEADER.size + self.codec.most_bytes(blocks, itemsize)

    @cached_property
    def _mark(self) -> int:
        return zlib.crc32(self.name.encode()) & 0xFFFF


def _zstd() -> Any:
    import pyarrow  # imported late: most runs shorten nothing

    return pyarrow.Codec("zstd")


def zstd_is_there() -> bool:
    """Return whether this build of pyarrow has zstd."""
    import pyarrow

    return bool(pyarrow.Codec.is_available("zstd"))
