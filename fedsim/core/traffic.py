"""What travels at a visit between a real device and a real server that sees each device's result.

The one source of every figure of traffic: of reports, records, summary, plan and docs. Counted are vectors of the exchanged
prompts and the head; single numbers (examples held, local steps) are not. docs/method.md says why each vector is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PROMPT, CONTROL, GAIN, STEPS = "prompt", "control variate", "gain", "steps"
"""P_t down and P_i up; c; G_i; S_i."""


@dataclass(frozen=True)
class Traffic:
    """The vectors of a visit, by name."""

    down: tuple[str, ...]
    """What a device receives."""
    up: tuple[str, ...]
    """What it sends."""

    def bytes_down(self, vector_bytes: int) -> int:
        """Return the bytes that a device receives at a visit, from those of one vector."""
        return len(self.down) * vector_bytes

    def bytes_up(self, vector_bytes: int) -> int:
        """Return the bytes that a device sends at a visit."""
        return len(self.up) * vector_bytes

    def without_control(self) -> Traffic:
        """Return what travels where the server has no control variate, as in the warm-up of ``layers.share_rule``."""
        return replace(self, down=tuple(name for name in self.down if name != CONTROL))


def round_traffic(correction: str, optimizer: str, weight_decay: float) -> Traffic:
    """Return what travels at a visit.

    A client's control variate c_i never does: c_i+ is made of P_t, P_i, T_i, eta, c and c_i, all of which the server has. The
    server's own, c, is needed on the device only where local steps are corrected by it.

    With the preconditioner correction the server also needs the gain G_i and the steps S_i. With plain or momentum SGD, G_i is
    the same in every entry: one number. Without weight decay S_i = P_t - P_i; with it P_i is a sum of steps in other weights,
    from which S_i cannot be had.

    Parameters
    ----------
    correction
        The local correction in force: none, control, preconditioner or proximal.
    optimizer, weight_decay
        ``client.optimizer.kind`` and ``client.optimizer.weight_decay``.
    """
    down, up = [PROMPT], [PROMPT]
    if correction == "control":
        down.append(CONTROL)
    if correction == "preconditioner":
        up += [GAIN] * (optimizer != "sgd") + [STEPS] * (weight_decay > 0.0)
    return Traffic(tuple(down), tuple(up))
