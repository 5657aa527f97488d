"""Vectors of passes in a round that trains some of their entries only: the others are constants.

Shape suffixes: C clients, A entries that the round trains, W all entries that act in a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.training.local_job import LocalJob, Parts


class WholeVectors:
    """Puts the trained entries of clients between the constant ones, and takes their gradient out again.

    Parameters
    ----------
    jobs
        One per client, in the order of the rows.
    """

    def __init__(self, jobs: Sequence[LocalJob], parts: Parts, device: torch.device) -> None:
        self.layout = parts.whole
        self._trained_W: Tensor | None = None
        if parts.trained_W is not None:
            constant_CW = np.stack([job.whole_W for job in jobs if job.whole_W is not None])
            self._trained_W, self._constant_CW = to_device(parts.trained_W, device), to_device(constant_CW, device)

    def joined(self, vector_CA: Tensor) -> Tensor:
        """Return the vectors [C, W] of the first clients."""
        if self._trained_W is None:
            return vector_CA
        return self._constant_CW[: len(vector_CA)].index_copy(1, self._trained_W, vector_CA)

    def trained(self, gradient_CW: Tensor) -> Tensor:
        """Return the gradient of the trained entries, [C, A]."""
        return gradient_CW if self._trained_W is None else gradient_CW[:, self._trained_W]
