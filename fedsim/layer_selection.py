"""Which layers are exchanged: let the clients score them, then choose. A part of every run, and ``fedsim layers``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from clients.prompts import initial_vector
from clients.worker import WorkerInfo
from fedsim.config import Config
from fedsim.core import seeds
from fedsim.core.errors import ClientError
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import GlobalState
from fedsim.executors.base import Executor
from fedsim.interrupt import InterruptWatch
from fedsim.preparation import Prepared, check_lengths, prepare
from fedsim.progress import Progress
from fedsim.runner import make_executor
from server.selection import choose_layers, combine_scores


@dataclass(frozen=True)
class LayerChoice:
    """Which layers are exchanged, and the scores that decided it."""

    layers: tuple[int, ...]
    scores_L: np.ndarray | None
    """float64; None where the choice needs no scores or was restored from a checkpoint."""


def select_layers(config: Config, console: Console) -> LayerChoice:
    """Start workers, let the clients score the layers, and return the choice: what ``fedsim layers`` does."""
    with InterruptWatch() as watch, Progress(config.rounds, "score", console) as progress, ExitStack() as stack:
        prepared = prepare(config, progress.start_phase)
        executor = make_executor(config, watch.check, progress.note)
        stack.callback(executor.close)
        workers = start_workers(config, prepared, executor, progress)
        progress.start_phase("scoring layers")
        return choose(config, executor, workers[0].full)


def start_workers(config: Config, prepared: Prepared, executor: Executor, progress: Progress) -> list[WorkerInfo]:
    """Start the executor's workers and check that the texts fit the backbone."""
    progress.start_phase("starting workers" if config.executor == "local" else "starting Ray and its actors")
    workers = executor.start(prepared.spec)
    check_lengths(config, prepared.spec, workers[0].max_tokens)
    return workers


def choose(config: Config, executor: Executor, full: VectorLayout) -> LayerChoice:
    """Choose the exchanged layers; for ``layers.choose: score`` the clients score them first, with prompts everywhere."""
    num_layers = full.geometry.num_layers
    if config.layers.choose != "score":
        return LayerChoice(choose_layers(config.layers, num_layers, None, config.seed), None)
    vector_F = initial_vector(full, config.prompt, config.model.head, config.seed)
    state = executor.put(GlobalState(0, full.layers, vector_F))
    clients = _scoring_clients(config)
    size = 1 if executor.per_client else 4 * config.group_size
    groups = [tuple(clients[start : start + size]) for start in range(0, len(clients), size)]
    reports = executor.score(state, groups)
    for report in reports:
        if report.failure is not None:
            raise ClientError(
                f"client {report.client} failed to score the layers: {report.failure.message}\n{report.failure.traceback}"
            )
    scores_L = combine_scores([report.scores_L for report in reports], [report.num_examples for report in reports])
    return LayerChoice(choose_layers(config.layers, num_layers, scores_L, config.seed), scores_L)


def _scoring_clients(config: Config) -> list[int]:
    population, wanted = config.partition.clients, config.layers.score_clients
    if wanted is None or wanted >= population:
        return list(range(population))
    rng = seeds.stream(config.seed, seeds.NO_ROUND, seeds.NO_CLIENT, "score")
    return sorted(int(client) for client in rng.choice(population, wanted, replace=False))
