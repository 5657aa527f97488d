"""Where the low-rank change of a linear map, and what the map gets besides, lie in flat vectors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LowRank:
    """The change ``scale * B A`` of one map, and a residual that is added to the map itself."""

    down: slice
    """A [rank, in] in what a round trains."""
    up: slice
    """B [out, rank] in what a round trains."""
    residual: slice
    """The residual [out, in] in the server's vector."""
    rank: int
    scale: float
