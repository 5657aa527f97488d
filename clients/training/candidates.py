"""Local training without gradients: each client's search asks for the losses of candidates (:mod:`fedsim.core.cma`).

In a shared pass the candidates of all clients are the rows, so a step of ten clients with twenty candidates each is one forward
pass over two hundred prompts. Draws come from each client's own stream, in float64 on the CPU, so who shares a pass changes no
candidate.

Shape suffixes: C clients, A numbers that a client trains, N candidates of a client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.budget import population_of
from clients.optimizer_config import OptimizerConfig
from clients.training.gradients import Gradient, StepBatch
from clients.training.local_job import LocalJob
from fedsim.core import seeds
from fedsim.core.cma import SeparableCma
from fedsim.core.messages import DEVIATION

Losses = Callable[[StepBatch, Tensor], Gradient]
"""Returns the losses of a batch whose rows are the candidates."""


@dataclass(frozen=True)
class Stepped:
    """A step of some clients' searches."""

    loss_C: Tensor
    """Mean loss of a client's candidates."""
    tokens_C: np.ndarray
    """int64; tokens that its candidates read."""
    slots_C: np.ndarray
    """int64; tokens that attention computed for them."""


class Searches:
    """A search of each client that trains in this round.

    Parameters
    ----------
    jobs
        One per client, in the order of the rows.
    """

    def __init__(self, config: OptimizerConfig, jobs: Sequence[LocalJob], seed: int, round: int) -> None:
        self._population = population_of(config, len(jobs[0].start_A))
        self._searches = [
            SeparableCma(
                job.start_A,
                np.broadcast_to(job.begun.get(DEVIATION, config.sigma), job.start_A.shape),
                self._population,
                seeds.stream(seed, round, job.client, "candidates"),
            )
            for job in jobs
        ]

    def step(self, count: int, batch: StepBatch, vector_CA: Tensor, losses: Losses) -> Stepped:
        """Take a step of the first clients and put their means into ``vector_CA``, [count, A]."""
        searches, population = self._searches[:count], self._population
        drawn = np.concatenate([search.ask() for search in searches])
        candidates = to_device(torch.from_numpy(drawn).to(vector_CA.dtype), vector_CA.device)
        computed = losses(batch.for_candidates(population), candidates)
        losses_CN = computed.loss_C.double().cpu().numpy().reshape(count, population)
        for search, losses_N in zip(searches, losses_CN, strict=True):
            search.tell(losses_N)
        means = torch.from_numpy(np.stack([search.mean_F for search in searches]))
        vector_CA.copy_(means.to(vector_CA.dtype))
        tokens_C, slots_C = (each.reshape(count, population).sum(1) for each in (computed.tokens_C, computed.slots_C))
        return Stepped(computed.loss_C.view(count, population).mean(1), tokens_C, slots_C)

    @property
    def walked_C1(self) -> np.ndarray:
        """float64; see :attr:`fedsim.core.cma.SeparableCma.walked`."""
        return np.array([[search.walked] for search in self._searches])
