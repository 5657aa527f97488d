"""What a visit costs a device: the tokens that it computes, in whole passes, and the bytes that travel.

Ours: a layer costs the same forward and backward, so a token's forward and backward pass through all L layers is 2 L layer
passes; embeddings and head cost nothing. A frozen backbone needs no gradients of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Downloads:
    """Bytes that a device receives where messages are compressed, and depend on how many it has missed."""

    whole: int
    """Of an array as it is."""
    change: int
    """Of a message with an array's change by a round, at most."""
    following: int
    """Arrays that follow by changes."""
    always: int
    """Bytes of the others, which travel anew each time."""

    def since(self, missed: int | None) -> int:
        """Return the bytes of a visit ``missed`` rounds behind the device's last one, None for its first visit."""
        each = self.whole if missed is None else min(self.whole, missed * self.change)
        return self.always + self.following * each


@dataclass(frozen=True)
class VisitCost:
    """The cost of a visit of each client."""

    tokens_N: np.ndarray
    """Whole passes of a token, float64: what tokens cost in the layers that really run, over what they cost in all."""
    first_tokens_N: np.ndarray
    """The same for a client's first visit, which may have to compute its frozen-layer cache."""
    bytes_down: tuple[int, ...]
    """Bytes that a device receives, by round where rounds train parts in turn."""
    bytes_up: tuple[int, ...]
    needed_bytes: float
    """Memory that training takes."""
    downloads: Downloads | None = None
    """What a device receives in place of ``bytes_down``, where that is compressed."""

    def travel(self, round: int, missed: int | None = 1) -> tuple[int, int]:
        """Return the bytes down and up of a round, for a device whose last visit was ``missed`` rounds before."""
        down = self.bytes_down[round % len(self.bytes_down)] if self.downloads is None else self.downloads.since(missed)
        return down, self.bytes_up[round % len(self.bytes_up)]


def layer_share(num_layers: int, lowest: int, *, cached: bool, backward: bool = True, candidates: int = 1) -> float:
    """Return what a token costs, in forward and backward passes through all layers.

    Parameters
    ----------
    lowest
        The lowest tuned layer: backward passes end there, and with the cache forward passes begin there. ``num_layers`` if
        only what is behind the last layer is trained.
    cached
        Whether the input of that layer is kept.
    backward
        Whether there is a backward pass; a search without gradients has none.
    candidates
        Forward passes for a token, with a search.
    """
    above = num_layers - lowest
    forward = candidates * (above if cached else num_layers)
    return (forward + (above if backward else 0)) / (2 * num_layers)
