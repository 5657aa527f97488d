"""Passes through the backbone: how many examples go together, and what is done where memory does not hold them.

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
    """Most tokens in one pass. It falls where memory does not hold a pass, and stays there for all later ones."""

    tokens: int | None = None
    """None for no limit."""
    splits: int = 0
    """Times that a pass was cut in two."""

    @classmethod
    def of(cls, limit: PassLimit | int | None) -> PassLimit:
        """Return a number of tokens as a limit, and a limit as it is."""
        return limit if isinstance(limit, PassLimit) else cls(limit)


def run_passes(lengths_B: np.ndarray, pieces: Sequence[slice], limit: PassLimit, run: Callable[[slice], None]) -> None:
    """Run examples through the backbone, piece by piece, in order.

    A pass that memory does not hold is cut in two, again and again until it is one example, after all memory that PyTorch
    holds in reserve was given back. An example is never cut.

    Parameters
    ----------
    lengths_B
        Tokens of each example.
    pieces
        Runs of examples that go together, where neither ``limit`` nor memory says otherwise.
    limit
        Lowered in place.
    run
        Called with the examples of a pass. Until it has succeeded it must leave nothing behind.

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
        # Only here, outside of the handler, has the failed pass let go of its tensors.
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
