"""Matrix-multiply operations that prompt tuning needs, for computing shares of a machine's peak."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Sizes of a backbone whose layers are four projections of attention and those of a feed-forward net."""

    hidden: int
    inner: int
    """Width of the feed-forward net."""
    layers: int
    keys: int | None = None
    """Width of keys, and of values, where several heads of queries share them; None for the hidden size."""
    feeds: int = 2
    """Linear maps of the feed-forward net: three in a gated one."""
    causal: bool = False
    """Whether a token attends to those before it alone."""

    @property
    def read(self) -> int:
        """Weights of the projections of keys and values."""
        return 2 * self.hidden * (self.hidden if self.keys is None else self.keys)

    @property
    def projections(self) -> int:
        """Weights of the projections of queries, keys and values."""
        return self.hidden**2 + self.read

    @property
    def linear(self) -> int:
        """Weights of a layer's linear maps."""
        return self.projections + self.hidden**2 + self.feeds * self.hidden * self.inner

    def pairs(self, lengths_N: np.ndarray, prompt_length: int) -> float:
        """Return the pairs of a token and what it attends to."""
        own_N = (lengths_N + 1) / 2 if self.causal else lengths_N
        return float((lengths_N * (own_N + prompt_length)).sum())


def needed_flops(
    shape: Shape,
    lengths_N: np.ndarray,
    prompt_length: int,
    lowest: int = 0,
    *,
    cached: bool = False,
    low_rank: int = 0,
    one_read: bool = False,
) -> float:
    """Return the floating-point operations of one forward and backward pass over some examples.

    It counts what the mathematics needs: no padding, no gradients of frozen weights, no backward pass below the lowest
    prompted layer.

    Parameters
    ----------
    lengths_N
        Tokens of each example.
    lowest
        Lowest tuned layer; all above it are tuned as well.
    cached
        Whether that layer's input is cached.
    low_rank
        Trained numbers in a layer that multiply tokens, as LoRA's matrices do: each is used in two products forward and in
        four backward per token.
    one_read
        Whether the head reads one token per example: in the top layer all others need only keys and values.
    """
    lengths_N = lengths_N.astype(float)
    linear, projections = shape.linear, shape.projections
    tokens, pairs = lengths_N.sum(), shape.pairs(lengths_N, prompt_length)
    upper = shape.layers - lowest
    forward = (upper if cached else shape.layers) * (2 * linear * tokens + 4 * shape.hidden * pairs)
    # A gradient of an input costs as much as the product itself; none enters the projections of the lowest prompted layer.
    backward = upper * (2 * linear * tokens + 8 * shape.hidden * pairs) - 2 * projections * tokens
    forward += 2 * upper * low_rank * tokens
    backward += 4 * upper * low_rank * tokens
    if one_read:
        others, unread_pairs = tokens - len(lengths_N), pairs - (lengths_N + prompt_length).sum()
        unread = 2 * (linear - shape.read) * others
        forward -= unread + 4 * shape.hidden * unread_pairs
        backward -= unread + 8 * shape.hidden * unread_pairs
        if upper == 1:  # their queries' projections have been left out above
            backward += 2 * shape.hidden**2 * others
    return float(forward + backward)


def virtual_token_flops(
    shape: Shape,
    lengths_N: np.ndarray,
    length: int,
    depth: int = 0,
    *,
    cached: bool = False,
    plain_pass: bool = False,
    one_read: bool = False,
) -> float:
    """Return the operations with trained vectors before each text in the hidden states, without those of a generator.

    Parameters
    ----------
    length
        Virtual tokens.
    depth
        Layer at whose input they enter.
    cached
        Whether what the frozen model computes for texts alone is cached.
    plain_pass
        Whether a pass of the plain model comes first, of which one token of each text is read.
    """
    upper = replace(shape, layers=shape.layers - depth)
    tuned = needed_flops(upper, lengths_N + length, 0, one_read=one_read)
    # Their gradient goes through the projections of the lowest layer that sees them.
    tuned += 2 * shape.projections * length * len(lengths_N)
    if cached:
        return tuned
    first = _forward(shape, lengths_N, shape.layers, one_read=True) if plain_pass else 0.0
    return tuned + first + _forward(shape, lengths_N, depth)


def _forward(shape: Shape, lengths_N: np.ndarray, layers: int, *, one_read: bool = False) -> float:
    """Return the operations of a forward pass of plain texts through some layers."""
    lengths_N = lengths_N.astype(float)
    tokens, pairs = lengths_N.sum(), shape.pairs(lengths_N, 0)
    flops = layers * (2 * shape.linear * tokens + 4 * shape.hidden * pairs)
    if one_read:
        flops -= 2 * (shape.linear - shape.read) * (tokens - len(lengths_N)) + 4 * shape.hidden * (pairs - tokens)
    return float(flops)
