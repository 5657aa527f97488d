"""What travels in a round between a real device and a real server that sees each device's result.

The one source of every figure of traffic: of reports, records, summary, plan and docs. It follows from what the corrections in
force declare. Counted are vectors of the exchanged prompts and the head; single numbers (examples held, local steps) are not.
docs/method.md says why each vector is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.core.correction import Correction

PROMPT = "prompt"
"""P_t down and P_i up."""


@dataclass(frozen=True)
class Traffic:
    """The vectors of a round, in words."""

    down: tuple[str, ...]
    """What a device receives."""
    up: tuple[str, ...]
    """What it sends."""

    def bytes_down(self, vector_bytes: int) -> int:
        """Return the bytes that a device receives in a round, from those of one vector."""
        return len(self.down) * vector_bytes

    def bytes_up(self, vector_bytes: int) -> int:
        """Return the bytes that a device sends in a round."""
        return len(self.up) * vector_bytes


def round_traffic(corrections: Iterable[Correction], client: Any, served: Collection[str] | None = None) -> Traffic:
    """Return what travels in a round: the prompt both ways, and what corrections need beside it.

    Parameters
    ----------
    client
        The section ``client``.
    served
        Names of the arrays that the server has, if not all that corrections read: none in the warm-up of
        ``layers.share_rule``.
    """
    down, up = [PROMPT], [PROMPT]
    for correction in corrections:
        down += [correction.words.get(n, n) for n in correction.down(client) if served is None or n in served]
        up += [correction.words.get(name, name) for name in correction.up(client)]
    return Traffic(tuple(down), tuple(up))
