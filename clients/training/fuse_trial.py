"""Fuse trial for ``client.fuse: auto``: times one step of several clients, one after another and side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from clients.backbone.device import to_device
from clients.backbone.model import Backbone
from clients.budget import STEP_VECTORS, population_of
from clients.config import ClientConfig
from clients.training.gradients import StepBatch, gradients, losses, shares
from clients.training.local_job import batches
from clients.tuners.prompt_dropout import draw_kept, kept_scale
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout
from fedsim.core.memory import free_memory_bytes
from fedsim.core.messages import FuseTrial
from fedsim.core.tokens import TokenTable

_REPEATS = 2
_ENOUGH_SECONDS = 0.5
"""A trial that took this long is not repeated: only short ones are noisy."""


def try_fusing(
    backbone: Backbone,
    table: TokenTable,
    indices_N: Sequence[np.ndarray],
    layout: VectorLayout,
    vector_A: np.ndarray,
    config: ClientConfig,
    max_tokens: int,
    seed: int,
    prompt_dropout: float = 0.0,
    tallies: int = 0,
) -> FuseTrial:
    """Time the gradients, or the losses of candidates, of the first step of some clients, one after another and all at once.

    Parameters
    ----------
    indices_N
        Training examples of each client.
    vector_A
        Start parameters of all of them.
    prompt_dropout
        ``prompt.dropout``; its masks cost time and memory.
    tallies
        Number of vectors that corrections add to in a step.
    """
    batch = _first_batches(config, table, indices_N, seed)
    if prompt_dropout:
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "prompt dropout")
        kept_BA = draw_kept(rng, prompt_dropout, len(batch), layout.tuned_size)
        batch = replace(batch, kept_BA=kept_BA, kept_scale=kept_scale(prompt_dropout))
    population = population_of(config.optimizer, len(vector_A))
    work = gradients
    if config.optimizer.kind == "cma_es":
        batch, work = batch.for_candidates(population), losses
    vector_CA = to_device(np.stack([vector_A] * len(indices_N) * population), backbone.device)

    def alone() -> None:
        for row in range(len(indices_N)):
            own_B = batch.owners_B // population == row
            single = StepBatch(
                batch.indices_B[own_B],
                batch.owners_B[own_B] % population,
                batch.share_B[own_B],
                kept_BA=None if batch.kept_BA is None else batch.kept_BA[own_B],
                kept_scale=batch.kept_scale,
            )
            work(backbone, table, single, layout, vector_CA[:population], max_tokens)

    def together() -> None:
        work(backbone, table, batch, layout, vector_CA, max_tokens)

    together()  # warm-up: the first pass of a process pays one-time costs
    masks = 0 if batch.kept_BA is None else batch.kept_BA.nbytes
    pairs: list[tuple[float, float]] = []
    while len(pairs) < _REPEATS and sum(map(sum, pairs)) < _ENOUGH_SECONDS:
        pairs.append((_seconds(backbone.device, alone), _seconds(backbone.device, together)))
    return FuseTrial(
        clients=len(indices_N),
        seconds_alone=min(pair[0] for pair in pairs),
        seconds_together=min(pair[1] for pair in pairs),
        bytes_per_client=(STEP_VECTORS + tallies + population - 1) * vector_A.nbytes + masks // len(indices_N),
        bytes_free=_free_bytes(backbone.devices),
    )


def _first_batches(config: ClientConfig, table: TokenTable, indices_N: Sequence[np.ndarray], seed: int) -> StepBatch:
    chosen = []
    for row, own_N in enumerate(indices_N):
        _, positions = next(batches(config, len(own_N), seeds.stream(seed, seeds.NO_ROUND, row, "shuffle")))
        chosen.append(own_N[positions])
    owners_B = np.repeat(np.arange(len(chosen)), [len(own) for own in chosen])
    indices_B = np.concatenate(chosen)
    return StepBatch(indices_B, owners_B, shares(table, indices_B, owners_B))


def _seconds(device: torch.device, work: Callable[[], None]) -> float:
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_bytes(devices: tuple[torch.device, ...]) -> int | None:
    """Return the free memory of the fullest device, or None if the system does not report it."""
    if devices[0].type == "cuda":
        return min(torch.cuda.mem_get_info(device)[0] for device in devices)
    return free_memory_bytes()
