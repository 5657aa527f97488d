"""The Gaussian mechanism of a round: the clients' mean change with a fixed divisor and noise, and the next clipping norm.

Shape suffixes: F entries of the exchanged vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fedsim.core import seeds
from fedsim.core.clipping import Clipping
from fedsim.core.messages import VECTOR, CombinedUpdate


@dataclass(frozen=True)
class AdaptiveNorm:
    """How the clipping norm follows a quantile; see :class:`server.privacy.config.AdaptiveClippingConfig`."""

    quantile: float
    lr: float
    bit_noise: float


@dataclass(frozen=True)
class Mechanism:
    """What makes a round private; a pure function of seed, round and sums.

    Parameters
    ----------
    divisor
        Clients in a round, or expected in one; never the number that came, which an added client would change.
    clip_norm
        Clipping norm of the first round.
    noise_multiplier
        Standard deviation of the noise on the sum, divided by the clipping norm.
    at_clients
        The clients' messages hold the noise already.
    adaptive
        None for a fixed norm.
    """

    seed: int
    divisor: int
    clip_norm: float
    noise_multiplier: float
    at_clients: bool = False
    adaptive: AdaptiveNorm | None = None

    def told(self, clip_norm: float) -> Clipping:
        """Return what clients are told in a round with this clipping norm."""
        if not self.at_clients:
            return Clipping(clip_norm)
        share = 1.0 / math.sqrt(self.divisor)
        bit_noise = 0.0 if self.adaptive is None else self.adaptive.bit_noise
        return Clipping(clip_norm, share * self.noise_multiplier * clip_norm, share * bit_noise)

    def private(self, round: int, combined: CombinedUpdate, start_F: np.ndarray, clip_norm: float) -> CombinedUpdate:
        """Return a round's sums with the noisy mean; all else that tells how many clients came is replaced.

        Parameters
        ----------
        start_F
            P_t as it was broadcast.
        """
        start_F = start_F.astype(np.float64)
        change_F = combined.sums[VECTOR] - len(combined.clients) * start_F
        if not self.at_clients:
            rng = seeds.stream(self.seed, round, seeds.NO_CLIENT, "noise")
            change_F = change_F + self.noise_multiplier * clip_norm * rng.standard_normal(len(start_F))
        vector_F = start_F + change_F / self.divisor
        weight = float(self.divisor)
        return replace(combined, weight_sum=weight, vector_F=vector_F, sums={VECTOR: weight * vector_F}, steps_sum=0)

    def next_norm(self, round: int, combined: CombinedUpdate, clip_norm: float) -> float:
        """Return the clipping norm of the next round: C exp(-lr (share within the norm - quantile)).

        The share is that of bits less one half, which an added client changes by one half, not one.
        """
        if self.adaptive is None:
            return clip_norm
        centred = combined.bits_sum - 0.5 * len(combined.clients)
        if not self.at_clients:
            rng = seeds.stream(self.seed, round, seeds.NO_CLIENT, "bit noise")
            centred += self.adaptive.bit_noise * float(rng.standard_normal())
        share = centred / self.divisor + 0.5
        return clip_norm * math.exp(-self.adaptive.lr * (share - self.adaptive.quantile))


def nobody(round: int, size: int) -> CombinedUpdate:
    """Return the sums of a round for which no client was drawn."""
    zeros_F = np.zeros(size)
    return CombinedUpdate(round, (), (), 0.0, 0, zeros_F, {VECTOR: zeros_F})
