"""A correction's view of clients that train side by side: :class:`fedsim.core.method.Local` on torch tensors.

Shape suffixes: C clients, A all parameters that a client trains, F the exchanged ones among them; C1 one number per client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.config import ClientConfig
from clients.training.local_job import LocalJob, Parts
from clients.training.optimizers import Moments, column, gain
from fedsim.core.method import Correction


class LocalRows:
    """All clients of a shared pass during local training; :meth:`first` returns those active in a step.

    Parameters
    ----------
    vector_CA
        Their parameters; steps update them in place.
    """

    def __init__(
        self,
        config: ClientConfig,
        vector_CA: Tensor,
        jobs: Sequence[LocalJob],
        parts: Parts,
        corrections: Sequence[Correction],
    ) -> None:
        self.config, self.vector_CA = config, vector_CA
        self._jobs, self._exchanged_F = jobs, parts.exchanged_F
        self._begun: dict[str, Tensor] = {}
        names = [name for correction in corrections for name in correction.tallies]
        self.tallies = {name: torch.zeros_like(vector_CA) for name in names}

    @cached_property
    def positions_F(self) -> Tensor:
        """Positions of the exchanged entries."""
        return to_device(self._exchanged_F, self.vector_CA.device)

    @cached_property
    def start_CF(self) -> Tensor:
        """P_t, once a client."""
        return self._stacked([job.start_A[self._exchanged_F] for job in self._jobs])

    def begun(self, name: str) -> Tensor:
        """Return the start value of this name from the corrections, stacked over clients."""
        if name not in self._begun:
            self._begun[name] = self._stacked([np.atleast_1d(job.begun[name]) for job in self._jobs]).to(
                self.vector_CA.dtype
            )
        return self._begun[name]

    def _stacked(self, arrays_F: Sequence[np.ndarray]) -> Tensor:
        return to_device(np.stack(arrays_F), self.vector_CA.device)

    def first(self, count: int, lr_C: np.ndarray, moments: Moments) -> LocalStep:
        """Return the first ``count`` clients in a step with these learning rates and moments."""
        return LocalStep(self, count, lr_C, moments)


class LocalStep:
    """The first clients of :class:`LocalRows` in one step; see :class:`fedsim.core.method.Local`."""

    def __init__(self, rows: LocalRows, count: int, lr_C: np.ndarray, moments: Moments) -> None:
        self._rows, self._count, self._lr_C, self._moments = rows, count, lr_C, moments
        self.config = rows.config
        self.clipped_C1: Tensor | None = None
        self.tallies: Mapping[str, Tensor] = {name: tally_CA[:count] for name, tally_CA in rows.tallies.items()}

    @cached_property
    def lr_C1(self) -> Tensor:
        """Learning rates."""
        return column(self._lr_C, self._rows.vector_CA)

    @property
    def vector_CF(self) -> Tensor:
        """Exchanged entries before this step."""
        return self._rows.vector_CA[: self._count][:, self._rows.positions_F]

    @property
    def start_CF(self) -> Tensor:
        """P_t, once a client."""
        return self._rows.start_CF[: self._count]

    def begun(self, name: str) -> Tensor:
        """Return the start value of this name from the corrections, stacked over clients."""
        return self._rows.begun(name)[: self._count]

    def add_to(self, array_CA: Tensor, change_CF: Tensor) -> Tensor:
        """Add to the exchanged entries of an array in place, and return the array."""
        return array_CA.index_add_(1, self._rows.positions_F, change_CF)

    def with_added(self, array_CA: Tensor, change_CF: Tensor) -> Tensor:
        """Return a copy of an array with ``change_CF`` added to its exchanged entries."""
        return array_CA.index_add(1, self._rows.positions_F, change_CF)

    def gain_CA(self) -> Tensor:
        """Return the factor by which the optimizer scales a steady gradient; call it after the step's direction is computed."""
        return gain(self.config.optimizer, self._moments)
