"""Both ways of a run: which vectors travel, how each is written, and how long its messages are.

The driver makes them; devices (:mod:`clients.sending`) and server (``server/broadcasting.py``) hold them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.config import CodecConfig, CompressionConfig
from fedsim.core.compression.message import Packer
from fedsim.core.correction import Correction
from fedsim.core.errors import listed
from fedsim.core.messages import VECTOR


@dataclass(frozen=True)
class Link:
    """One way.

    Parameters
    ----------
    changes
        Writes changes about zero.
    scales
        Writes positive arrays; None if its codec cannot.
    feedback
        What changes lose is added to the next ones.
    """

    changes: Packer
    scales: Packer | None
    feedback: bool

    @classmethod
    def of(cls, spec: CodecConfig, params: Any, *, feedback: bool | None, zstd: bool) -> Link | None:
        """Return the link of a config, or None if nothing is compressed on it."""
        codec = spec.codec(params)
        if codec.exact and not zstd:
            return None
        feedback = codec.feedback if feedback is None else feedback
        scales = codec.for_scales()
        changes = codec.with_feedback() if feedback else codec
        return cls(
            Packer(changes, spec.kind, zstd), None if scales is None else Packer(scales, spec.kind, zstd), feedback
        )

    @property
    def exact(self) -> bool:
        """Whether arrays arrive as they are: then the vectors themselves travel, and not their changes."""
        return self.changes.codec.exact

    def packer(self, *, positive: bool) -> Packer:
        """Return what writes an array that is, or is not, positive."""
        if not positive:
            return self.changes
        assert self.scales is not None, "refused with the config"
        return self.scales


def uplink(config: CompressionConfig, params: Any = None) -> Link | None:
    """Return the way from devices to the server."""
    return Link.of(config.up, params, feedback=config.error_feedback, zstd=config.zstd)


def downlink(config: CompressionConfig, params: Any = None) -> Link | None:
    """Return the way from the server to devices: what it loses is always added to the next change."""
    return Link.of(config.down, params, feedback=True, zstd=config.zstd)


def positives(corrections: Iterable[Correction]) -> frozenset[str]:
    """Return the names of positive arrays by which something is divided, or that something is scaled with."""
    return frozenset(name for part in corrections for name in part.positive)


def sent_up(corrections: Iterable[Correction], client: Any) -> tuple[str, ...]:
    """Return the names of the arrays that a device sends, the vector first."""
    return (VECTOR, *(name for part in corrections for name in part.up(client)))


def sent_down(corrections: Iterable[Correction], client: Any, served: Collection[str]) -> tuple[str, ...]:
    """Return the names of the arrays that the server sends, the vector first."""
    return (VECTOR, *(name for part in corrections for name in part.down(client) if name in served))


def most_bytes(
    link: Link, names: Iterable[str], corrections: Iterable[Correction], blocks: Blocks, itemsize: int
) -> int:
    """Return the length of the longest messages of some arrays together."""
    own = positives(corrections)
    return sum(link.packer(positive=name in own).most_bytes(blocks, itemsize) for name in names)


def num_unsent(link: Link | None, corrections: Iterable[Correction], client: Any) -> int:
    """Return how many arrays a device keeps because its messages lost something."""
    if link is None or link.exact or not link.feedback:
        return 0
    return len(set(sent_up(corrections, client)) - positives(corrections))


def problem_up(link: Link, kind: str, corrections: Iterable[Correction], client: Any) -> str | None:
    """Return why what devices send cannot be compressed, or None."""
    for part in corrections:
        names = part.up(client)
        if unknown := [name for name in names if name not in part.tallies]:
            return (
                f"{{correction}} sends {listed(unknown)}, which the simulation cannot take apart from what it keeps; use "
                "compression.up.kind=none"
            )
        if not link.exact and link.scales is None and (scales := [name for name in names if name in part.positive]):
            words = [part.words.get(name, name) for name in scales]
            return (
                f"compression.up.kind={kind} does not send every entry as it is to within a factor, but {{correction}} divides "
                f"by the clients' {listed(words)}; use compression.up.kind=int8 or bfloat16, or client.correction=none"
            )
    return None


def problem_down(link: Link, kind: str, corrections: Iterable[Correction], client: Any) -> str | None:
    """Return why what the server sends cannot be compressed, or None."""
    for part in corrections:
        scales = [part.words.get(name, name) for name in part.down(client) if name in part.positive]
        if scales and not link.exact and link.scales is None:
            return (
                f"compression.down.kind={kind} does not send every entry as it is to within a factor, but devices need "
                f"positive {listed(scales)}; use compression.down.kind=int8 or bfloat16"
            )
    return None


def is_changed(link: Link | None) -> bool:
    """Whether numbers arrive changed."""
    return link is not None and not link.exact
