"""Batching of passes through the backbone, and splitting of passes that run out of memory.

Shape suffixes: B examples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.core.errors import ResourceError
from fedsim.core.tokens import cut


@dataclass
class PassLimit:
    """Most tokens per pass. It is lowered when a pass does not fit into memory, for all later passes too."""

    tokens: int | None = None
    """None for no limit."""
    splits: int = 0
    """Times that a pass was split in two."""

    @classmethod
    def of(cls, limit: PassLimit | int | None) -> PassLimit:
        """Convert a number of tokens to a limit; return a limit unchanged."""
        return limit if isinstance(limit, PassLimit) else cls(limit)


def run_passes(lengths_B: np.ndarray, pieces: Sequence[slice], limit: PassLimit, run: Callable[[slice], None]) -> None:
    """Run examples through the backbone in pieces, in order.

    A pass that does not fit into memory is split in two repeatedly, down to one example, after PyTorch's cached memory
    was released. An example is never split.

    Parameters
    ----------
    lengths_B
        Tokens of each example.
    pieces
        Ranges of examples that go together, unless ``limit`` or memory requires smaller ones.
    limit
        Lowered in place.
    run
        Called with the examples of a pass. It must have no effect unless it succeeds.

    Raises
    ------
    ResourceError
        If one example by itself does not fit.
    """
    waiting = deque(pieces)
    while waiting:
        piece = waiting.popleft()
        smaller = [
            slice(piece.start + part.start, piece.start + part.stop) for part in cut(lengths_B[piece], limit.tokens)
        ]
        if len(smaller) > 1:
            waiting.extendleft(reversed(smaller))
            continue
        if _fits(run, piece):
            continue
        # Only here, outside the handler, are the failed pass's tensors released.
        torch.cuda.empty_cache()
        num_tokens = int(lengths_B[piece].sum())
        if piece.stop - piece.start == 1:
            raise ResourceError(
                f"a single example of {num_tokens} tokens does not fit into the GPU's memory; lower data.max_length, "
                "give an actor more of the GPU (ray.num_gpus_per_actor), or set model.dtype=bfloat16"
            )
        limit.splits += 1
        limit.tokens = -(-num_tokens // 2)
        waiting.appendleft(piece)


def _fits(run: Callable[[slice], None], piece: slice) -> bool:
    try:
        run(piece)
    except torch.OutOfMemoryError:
        return False
    return True
