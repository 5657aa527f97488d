"""Compression on the way up: what is summed, and what the device keeps, is made of what the server reads.

Shape suffixes: F entries of the exchanged vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.core import seeds
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.links import Link, positives, sent_up
from fedsim.core.finite import is_finite
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import VECTOR
from fedsim.core.method import ClientRound, Correction

Stream = Callable[[str], np.random.Generator]
"""The random stream of a message, by the name of its array."""


def unsent(name: str) -> str:
    """Return the name, in a client's state, of what earlier messages of an array have lost."""
    return f"unsent/{name}"


@dataclass(frozen=True)
class Sent:
    """A client after training, as the server sees it."""

    client: ClientRound
    bytes_up: int | None = None
    """Length of its messages; None where nothing is compressed, and :mod:`fedsim.core.traffic` counts."""
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the device keeps for its next messages, by name."""
    change_norm: float | None = None
    """Norm of its change before clipping; None without privacy."""
    bit: float = 0.0
    """1 if the change was within the clipping norm, with the client's share of noise if it adds one."""


def stream_of(seed: int, round: int, client: int) -> Stream:
    """Return the streams of a client's messages in a round."""
    return lambda name: seeds.stream(seed, round, client, f"compress {name}")


def compressed(
    link: Link | None, corrections: tuple[Correction, ...], client: ClientRound, layout: VectorLayout, streams: Stream
) -> Sent:
    """Return a client's result as the server reads it from the client's messages.

    A result that is not finite is not sent; the client's failure is reported for it.

    Parameters
    ----------
    link
        None where nothing is compressed.
    layout
        Of the exchanged vector.
    """
    if link is None:
        return Sent(client)
    arrays = {VECTOR: client.trained_F, **client.tallies}
    names = sent_up(corrections, client.config)
    if not all(is_finite(arrays[name]) for name in names):
        return Sent(client, 0)
    blocks, own = Blocks.of(layout), positives(corrections)
    read, kept, num_bytes = dict(client.tallies), {}, 0
    for name in names:
        packer, array_F = link.packer(positive=name in own), arrays[name]
        if link.exact or name in own:
            message = packer.pack(array_F, blocks, streams(name))
            read[name] = packer.unpack(message, blocks)
        else:
            start_F = client.start_F if name == VECTOR else np.zeros_like(array_F)
            change_F = array_F - start_F
            if link.feedback:
                change_F += client.kept(unsent(name))
            message = packer.pack(change_F, blocks, streams(name))
            read_F = packer.unpack(message, blocks)
            if link.feedback:
                kept[unsent(name)] = change_F - read_F
            read[name] = start_F + read_F
        num_bytes += len(message)
    client = replace(client, vector_F=read.pop(VECTOR), tallies=read)
    return Sent(client if link.exact else _with_steps(client, corrections, names), num_bytes, kept)


def _with_steps(client: ClientRound, corrections: tuple[Correction, ...], names: tuple[str, ...]) -> ClientRound:
    """Return the client with the steps that do not travel as the server derives them: P_t - P_i."""
    derived = {name for part in corrections for name in part.displacements if name not in names}
    return replace(client, tallies={**client.tallies, **dict.fromkeys(derived, client.start_F - client.trained_F)})
