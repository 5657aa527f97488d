"""The last stage before a client's result is sent: its change is clipped, and its share of the noise added.

Shape suffixes: A all parameters a client trains, F exchanged entries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core import seeds
from fedsim.core.clipping import Clipping, change_norm, clipped

if TYPE_CHECKING:
    from clients.training.local_job import LocalJob, Parts, TrainingResult

_BIT_GRID = 2.0**30
"""Bits with noise are multiples of its inverse, so that their sum is exact in any order."""


def privatised(
    clipping: Clipping | None, seed: int, round: int, parts: Parts, job: LocalJob, result: TrainingResult
) -> TrainingResult:
    """Return the result as the server may see it; as it is without privacy.

    Parameters
    ----------
    clipping
        What the server told; None without privacy.
    """
    if clipping is None:
        return result
    exchanged_F = parts.exchanged_F
    start_F, vector_F = job.start_A[exchanged_F], result.vector_A[exchanged_F]
    length = change_norm(start_F, vector_F)
    sent_F, bit = clipped(start_F, vector_F, clipping.norm), float(length <= clipping.norm)
    if clipping.noise_std:
        rng = seeds.stream(seed, round, job.client, "noise share")
        sent_F = (sent_F + clipping.noise_std * rng.standard_normal(len(sent_F))).astype(vector_F.dtype)
    if clipping.bit_noise_std:
        rng = seeds.stream(seed, round, job.client, "bit noise share")
        noisy = bit + clipping.bit_noise_std * rng.standard_normal()
        bit = float(np.rint(noisy * _BIT_GRID)) / _BIT_GRID
    vector_A = result.vector_A.copy()
    vector_A[exchanged_F] = sent_F
    return replace(result, vector_A=vector_A, change_norm=length, bit=bit)
