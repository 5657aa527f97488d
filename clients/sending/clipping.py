"""The last stage before a client's result is sent: its change is clipped, and its share of the noise added.

Shape suffix: F exchanged entries.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clients.sending.compressing import Sent
from fedsim.core import seeds
from fedsim.core.clipping import Clipping, change_norm, clipped

_BIT_GRID = 2.0**30
"""Bits with noise are multiples of its inverse, so that their sum is exact in any order."""


def privatised(clipping: Clipping | None, seed: int, round: int, client: int, sent: Sent) -> Sent:
    """Return a client's result as the server may see it; as it is without privacy.

    It comes after compression, since what a device's messages read as may be longer than what it has packed.

    Parameters
    ----------
    clipping
        What the server told; None without privacy.
    """
    if clipping is None:
        return sent
    start_F, vector_F = sent.client.start_F, sent.client.trained_F
    length = change_norm(start_F, vector_F)
    sent_F, bit = clipped(start_F, vector_F, clipping.norm), float(length <= clipping.norm)
    if clipping.noise_std:
        rng = seeds.stream(seed, round, client, "noise share")
        sent_F = (sent_F + clipping.noise_std * rng.standard_normal(len(sent_F))).astype(vector_F.dtype)
    if clipping.bit_noise_std:
        rng = seeds.stream(seed, round, client, "bit noise share")
        noisy = bit + clipping.bit_noise_std * rng.standard_normal()
        bit = float(np.rint(noisy * _BIT_GRID)) / _BIT_GRID
    return replace(sent, client=replace(sent.client, vector_F=sent_F), change_norm=length, bit=bit)
