"""Codecs that write a number, such as a scale, for each block of entries."""

from __future__ import annotations

from typing import Any, Literal

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Codec


class InBlocks(Codec):
    """A codec with blocks of its own.

    Parameters
    ----------
    block
        Entries of a block, or ``layer``: the arrays of the layers.
    """

    def __init__(self, block: int | Literal["layer"]) -> None:
        super().__init__()
        self._block: int | Literal["layer"] = block

    @classmethod
    def of(cls, spec: Any, params: Any = None) -> Codec:
        """Build the codec with ``block``."""
        return cls(spec.block)

    def chosen(self, blocks: Blocks) -> Blocks:
        """Return the codec's blocks of a vector, given the arrays of its layers."""
        return blocks if self._block == "layer" else blocks.every(self._block)
