"""Traffic of a round between a real device and a real server that sees each device's result.

The single source of all traffic figures without compression: reports, records, summary, plan and docs. It follows from the
declarations of the active corrections, and counts vectors of the exchanged layers and the head, not single numbers (examples
held, local steps). With compression (:mod:`fedsim.core.compression`) the figures are the lengths of messages.
docs/method.md explains why each vector is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.correction import Correction

PROMPT = "prompt"
"""P_t down and P_i up, where prompts are trained."""


@dataclass(frozen=True)
class Traffic:
    """The vectors of a round, by readable name."""

    down: tuple[str, ...]
    """Vectors that a device receives."""
    up: tuple[str, ...]
    """Vectors that a device sends."""

    def bytes_down(self, vector_bytes: int, prompt_bytes: int | None = None) -> int:
        """Return the bytes a device receives in a round.

        Parameters
        ----------
        vector_bytes
            Bytes of one vector.
        prompt_bytes
            Bytes of P_t, if not those of every other vector: a round that trains half of it still starts from the whole.
        """
        return (len(self.down) - 1) * vector_bytes + (vector_bytes if prompt_bytes is None else prompt_bytes)

    def bytes_up(self, vector_bytes: int) -> int:
        """Return the bytes a device sends in a round, given the bytes of one vector."""
        return len(self.up) * vector_bytes


def round_traffic(
    corrections: Iterable[Correction], client: Any, served: Collection[str] | None = None, vector: str = PROMPT
) -> Traffic:
    """Return a round's traffic: the trained vector in both directions, and what corrections need besides.

    Parameters
    ----------
    client
        The section ``client``.
    served
        Names of the arrays that the server has; None for all that corrections read, empty in the warm-up of
        ``layers.share_rule``.
    vector
        Readable name of the trained vector; see :mod:`clients.tuners.words`.
    """
    down, up = [vector], [vector]
    for correction in corrections:
        down += [correction.words.get(n, n) for n in correction.down(client) if served is None or n in served]
        up += [correction.words.get(name, name) for name in correction.up(client)]
    return Traffic(tuple(down), tuple(up))


@dataclass(frozen=True)
class Download:
    """Bytes of an array on its way down, where it is compressed."""

    whole: int
    """Of the array itself."""
    sent_R: np.ndarray | None = None
    """int64: entry r is the sum of all messages that change the array of round 0 to that of round r; None if there are none."""

    def since(self, last_round: int) -> int:
        """Return what a device that has the array of ``last_round`` receives: what it missed, or the whole if that is less."""
        if self.sent_R is None or last_round < 0:
            return self.whole
        return min(self.whole, int(self.sent_R[-1] - self.sent_R[last_round]))


def bytes_since(downloads: Mapping[str, Download], last_round: int) -> int:
    """Return the bytes that a device receives where the way down is compressed, if it last trained in ``last_round``."""
    return sum(download.since(last_round) for download in downloads.values())
