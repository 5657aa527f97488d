"""Codecs: arrays to bytes and back. Both ends know the codec and the layout, so that a payload holds numbers alone.

Shape suffixes: F entries of a vector, B blocks, K entries that are sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from fedsim.core.compression.blocks import Blocks
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema


class Codec(ABC):
    """Writes an array as bytes and reads it from them. Holds config values only, so the driver makes it for all.

    The arrays are changes, finite and about zero: what a codec leaves out is read as zero.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; passed in as :attr:`params`."""
    params: Any = None
    """An instance of ``Config``, or None if there is none."""
    exact: ClassVar[bool] = False
    """What is read is what was written, to the last bit."""
    feedback: ClassVar[bool] = True
    """Whether a client keeps what was lost and adds it to its next change, unless ``compression.error_feedback`` says so."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, spec: Any, params: Any = None) -> Codec:
        """Build the codec from the section ``compression.up`` or ``compression.down`` and its ``Config``."""
        return cls() if cls.Config is None else cls(params)

    @abstractmethod
    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the array as bytes.

        Parameters
        ----------
        array_F
            float32 or float64, finite.
        blocks
            Its layers' arrays.
        rng
            A stream of this message's own.
        """

    @abstractmethod
    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the array of ``blocks.size`` entries that :meth:`encode` wrote, in the number format that it had."""

    @abstractmethod
    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the length of the longest payload of such an array; most codecs write no other."""

    def with_feedback(self) -> Codec:
        """Return the codec for changes whose losses are added to the next one."""
        return self

    def for_scales(self) -> Codec | None:
        """Return the codec for positive arrays by which the server divides, or None if it cannot write them.

        It has to keep every entry positive, and its size to within a factor near one.
        """
        return None


class Plain(Codec):
    """Writes the numbers as they are."""

    exact = True
    feedback = False

    def encode(self, array_F: np.ndarray, blocks: Blocks, rng: np.random.Generator) -> bytes:
        """Return the array's own bytes, little-endian."""
        return written(array_F, array_F.dtype)

    def decode(self, payload: memoryview, blocks: Blocks, dtype: np.dtype) -> np.ndarray:
        """Return the array."""
        return numbers(payload, dtype, blocks.size).astype(dtype)

    def most_bytes(self, blocks: Blocks, itemsize: int) -> int:
        """Return the bytes of all entries."""
        return blocks.size * itemsize

    def for_scales(self) -> Codec:
        """Return itself."""
        return self


def written(array: np.ndarray, dtype: Any) -> bytes:
    """Return an array's numbers in a number format, little-endian."""
    return array.astype(np.dtype(dtype).newbyteorder("<"), copy=False).tobytes()


def numbers(payload: memoryview, dtype: Any, count: int = -1, offset: int = 0) -> np.ndarray:
    """Return a read-only view of numbers in a payload, all from ``offset`` on unless ``count`` is given."""
    if count == 0 or offset == len(payload):
        return np.empty(0, dtype)
    return np.frombuffer(payload, np.dtype(dtype).newbyteorder("<"), count, offset)


CODECS: Registry[type[Codec]] = Registry(
    "compression codec",
    "compression.up.kind",
    tuple(f"fedsim.core.compression.{name}" for name in ("floats", "integers", "sparse", "signs")),
    subclass_of(Codec),
)
CODECS.register("none")(Plain)
