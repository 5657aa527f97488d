"""Local training of several clients at once: mini-batch steps on prompts and heads, with optional drift correction.

The mini-batches of all clients go through the backbone together (:mod:`clients.training.gradients`); every client has
its own batches, step count, learning rate, moments and gradient norm. The mathematics is the same as for clients that train one
after another; only the last bits of matrix products depend on how many share a pass.

Shape suffixes: C clients, A all parameters that a client trains, F the exchanged ones among them, B examples of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.config import ClientConfig
from clients.training.candidates import Searches
from clients.training.gradients import Gradient, StepBatch, gradients, losses, shares
from clients.training.local_job import LocalJob, Parts, TrainingResult, batches, num_steps
from clients.training.local_rows import LocalRows
from clients.training.optimizers import Moments, clip, decay_and_step, direction, learning_rate
from clients.training.whole_vectors import WholeVectors
from clients.tuners.prompt_dropout import draw_kept, kept_scale
from fedsim.core import seeds
from fedsim.core.messages import WALKED
from fedsim.core.method import Correction
from fedsim.core.tokens import TokenTable


@contextmanager
def _dropout(backbone: Backbone, active: bool, seed: int) -> Iterator[None]:
    """Run with the backbone's dropout active, seeded for this local training; torch's random state is left unchanged."""
    if not active:
        yield
        return
    devices = [device for device in backbone.devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        backbone.set_dropout(True)
        try:
            yield
        finally:
            backbone.set_dropout(False)


def train_clients(
    backbone: Backbone,
    table: TokenTable,
    jobs: Sequence[LocalJob],
    parts: Parts,
    config: ClientConfig,
    corrections: Sequence[Correction] = (),
    *,
    seed: int,
    round: int,
    max_tokens: PassLimit | int | None = None,
    prompt_dropout: float = 0.0,
) -> list[TrainingResult]:
    """Run one local training of each client, all at once.

    Parameters
    ----------
    jobs
        One per client; only one with dropout, which draws from the client's own random stream.
    corrections
        Active corrections; their hooks are called in this order.
    max_tokens
        See :func:`gradients`.
    prompt_dropout
        Probability that a prompt entry is dropped, drawn for every example of every step (``prompt.dropout``).

    Returns
    -------
    list
        The results, in the order of ``jobs``.
    """
    if config.dropout and len(jobs) > 1:
        raise ValueError("clients with dropout train one by one, because each draws from its own random stream")
    # Clients with the most steps come first, so that the active ones are always the first rows.
    order = sorted(range(len(jobs)), key=lambda i: -num_steps(config, len(jobs[i].indices_N)))
    ordered = [jobs[i] for i in order]
    group = _Group(backbone, table, ordered, parts, config, corrections, seed, round, max_tokens, prompt_dropout)
    dropout_seed = seeds.torch_seed(seed, round, jobs[0].client, "dropout")
    with _dropout(backbone, config.dropout, dropout_seed):
        for step in range(group.num_steps):
            group.step(step)
    results = dict(zip(order, group.results(), strict=True))
    return [results[i] for i in range(len(jobs))]


class _Group:
    """Clients in local training; row c of every tensor belongs to client c."""

    def __init__(
        self,
        backbone: Backbone,
        table: TokenTable,
        jobs: Sequence[LocalJob],
        parts: Parts,
        config: ClientConfig,
        corrections: Sequence[Correction],
        seed: int,
        round: int,
        max_tokens: PassLimit | int | None,
        prompt_dropout: float,
    ) -> None:
        self._backbone, self._table, self._jobs, self._parts = backbone, table, jobs, parts
        self._config, self._limit = config, PassLimit.of(max_tokens)
        self._steps_C = np.array([num_steps(config, len(job.indices_N)) for job in jobs])
        self._batches = [
            list(batches(config, len(job.indices_N), seeds.stream(seed, round, job.client, "shuffle"))) for job in jobs
        ]
        self._prompt_dropout = prompt_dropout
        self._dropout_rngs = (
            [seeds.stream(seed, round, job.client, "prompt dropout") for job in jobs] if prompt_dropout else []
        )
        device = backbone.device
        self._cached, self._cached_starts = _joined_states(backbone, table, jobs)
        self._vector_CA = to_device(np.stack([job.start_A for job in jobs]), device)
        self._whole = WholeVectors(jobs, parts, device)
        self._moments = self._first_moments()
        self._corrections = corrections
        self._local = LocalRows(config, self._vector_CA, jobs, parts, corrections)
        self._searches = None
        if config.optimizer.kind == "cma_es":
            self._searches = Searches(config.optimizer, jobs, seed, round)
        self._losses: list[Tensor] = []
        self._tokens_C = np.zeros(len(jobs), np.int64)
        self._slots_C = np.zeros(len(jobs), np.int64)

    @property
    def num_steps(self) -> int:
        """Steps of the client with the most."""
        return int(self._steps_C.max())

    def step(self, step: int) -> None:
        """Take one step of every client that has one left."""
        count = int((self._steps_C > step).sum())
        if self._searches is not None:
            searched = self._searches.step(count, self._batch(step, count), self._vector_CA[:count], self._loss_alone)
            self._record(count, searched.loss_C, searched.tokens_C, searched.slots_C)
            return
        optimizer, vector_CA, moments = self._config.optimizer, self._vector_CA[:count], self._moments.head(count)
        whole, whole_CW = self._whole.layout, self._whole.joined(vector_CA)
        computed = gradients(self._backbone, self._table, self._batch(step, count), whole, whole_CW, self._limit)
        lr_C = np.array(
            [
                learning_rate(self._config.schedule, optimizer.lr, int(taken), int(job_steps))
                for taken, job_steps in zip(moments.steps_C, self._steps_C, strict=False)
            ]
        )
        local, gradient_CA = self._local.first(count, lr_C, moments), self._whole.trained(computed.gradient_CA)
        for correction in self._corrections:
            gradient_CA = correction.gradient(local, gradient_CA)
        local.clipped_C1 = clip(gradient_CA, optimizer.clip_norm)
        step_CA = direction(optimizer, moments, gradient_CA)
        for correction in self._corrections:
            step_CA = correction.step(local, step_CA)
        for correction in self._corrections:
            correction.stepped(local, step_CA)
        decay_and_step(optimizer, vector_CA, step_CA, lr_C)
        self._record(count, computed.loss_C, computed.tokens_C, computed.slots_C)

    def results(self) -> list[TrainingResult]:
        """Return each client's result, in row order."""
        tensors = [self._vector_CA, self._moments.first_CA, self._moments.second_CA]
        vector_CA, first_CA, second_CA = (tensor.cpu().numpy() for tensor in tensors)
        tallies = {name: tally_CA.cpu().numpy() for name, tally_CA in self._local.tallies.items()}
        if self._searches is not None and WALKED in tallies:
            tallies[WALKED] += self._searches.walked_C1.astype(tallies[WALKED].dtype)
        results = []
        for row, (loss_first, loss_last) in enumerate(self._epoch_losses()):
            results.append(
                TrainingResult(
                    vector_A=vector_CA[row],
                    first_moment_A=first_CA[row],
                    second_moment_A=second_CA[row],
                    num_steps=int(self._steps_C[row]),
                    loss_first=loss_first,
                    loss_last=loss_last,
                    num_tokens=int(self._tokens_C[row]),
                    num_slots=int(self._slots_C[row]),
                    tallies={name: tally_CA[row] for name, tally_CA in tallies.items()},
                )
            )
        return results

    def _loss_alone(self, batch: StepBatch, vector_CA: Tensor) -> Gradient:
        return losses(self._backbone, self._table, batch, self._whole.layout, vector_CA, self._limit)

    def _record(self, count: int, loss_C: Tensor, tokens_C: np.ndarray, slots_C: np.ndarray) -> None:
        self._losses.append(loss_C)
        self._tokens_C[:count] += tokens_C
        self._slots_C[:count] += slots_C

    def _first_moments(self) -> Moments:
        moments = Moments.zeros(self._vector_CA)
        for row, job in enumerate(self._jobs):
            if job.first_moment_A is not None and job.second_moment_A is not None:
                # Copied: arrays from the object store are read-only.
                moments.first_CA[row] = to_device(job.first_moment_A.copy(), moments.first_CA.device)
                moments.second_CA[row] = to_device(job.second_moment_A.copy(), moments.second_CA.device)
                moments.steps_C[row] = job.moment_steps
        return moments

    def _batch(self, step: int, count: int) -> StepBatch:
        positions = [self._batches[row][step][1] for row in range(count)]
        sizes_C = np.array([len(own) for own in positions])
        owners_B = np.repeat(np.arange(count), sizes_C)
        indices_B = np.concatenate([self._jobs[row].indices_N[own] for row, own in enumerate(positions)])
        starts_B = np.concatenate([self._cached_starts[row][own] for row, own in enumerate(positions)])
        share_B = shares(self._table, indices_B, owners_B)
        batch = StepBatch(indices_B, owners_B, share_B, self._cached, starts_B)
        return batch if not self._prompt_dropout else self._with_dropout(batch, sizes_C)

    def _with_dropout(self, batch: StepBatch, sizes_C: np.ndarray) -> StepBatch:
        """Draw masks for each client's examples from the client's own stream; call it once per step, in order."""
        chance, size = self._prompt_dropout, self._parts.trained.tuned_size
        drawn = [draw_kept(rng, chance, int(n), size) for rng, n in zip(self._dropout_rngs, sizes_C, strict=False)]
        return replace(batch, kept_BA=np.concatenate(drawn), kept_scale=kept_scale(chance))

    def _epoch_losses(self) -> list[tuple[float, float]]:
        """Return each client's mean loss over its first and last pass."""
        count = len(self._jobs)
        losses_SC = np.zeros((len(self._losses), count))
        # One copy for all steps: each copy from a GPU waits for all of its queued work.
        of_all_steps = torch.cat(self._losses).double().cpu().numpy()
        ends = np.cumsum([len(loss_C) for loss_C in self._losses])
        for step, loss_C in enumerate(np.split(of_all_steps, ends[:-1])):
            losses_SC[step, : len(loss_C)] = loss_C
        pairs = []
        for row, own in enumerate(self._batches):
            epochs_S = np.array([epoch for epoch, _ in own])
            losses_S = losses_SC[: len(own), row]
            pairs.append((float(losses_S[epochs_S == 0].mean()), float(losses_S[epochs_S == epochs_S[-1]].mean())))
        return pairs


def _joined_states(
    backbone: Backbone, table: TokenTable, jobs: Sequence[LocalJob]
) -> tuple[Tensor | None, list[np.ndarray]]:
    """Return the clients' cached states as one tensor on the device, and per client the row where each example starts."""
    starts, before = [], 0
    for job in jobs:
        kept_N = backbone.cached_rows(table.lengths_N[job.indices_N])
        starts.append(before + np.cumsum(kept_N) - kept_N)
        before += int(kept_N.sum())
    caches = [job.cached.tensor() for job in jobs if job.cached is not None]
    if not caches:
        return None, starts
    if len(caches) < len(jobs):
        raise ValueError("either all clients of a pass have a frozen-layer cache or none has")
    return to_device(torch.cat(caches), backbone.device), starts
