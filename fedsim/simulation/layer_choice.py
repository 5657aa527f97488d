"""Choice of the exchanged layers: number, scores, selection; part of every run, and of ``fedsim layers``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from clients.spec import WorkerInfo
from clients.tuners.initial import InitialVector
from fedsim.configuration.schema import Config
from fedsim.core import seeds
from fedsim.core.errors import ResourceError, listed
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import GlobalState
from fedsim.display.progress import Progress
from fedsim.executors.base import Executor, StateLost
from fedsim.executors.make import make_executor
from fedsim.kept.computed import Computed, scores_of, scores_record
from fedsim.kept.kept import Kept
from fedsim.prompts.starting_point import check_start
from fedsim.simulation.client_failures import usable
from fedsim.simulation.interrupt import InterruptWatch
from fedsim.simulation.layer_share import ShareEstimate, estimate_share
from fedsim.simulation.preparation import Prepared, check_lengths, prepare, settled
from server.selection import choose_layers, combine_scores, score_spread


@dataclass(frozen=True)
class LayerChoice:
    """The exchanged layers, and how they were chosen."""

    layers: tuple[int, ...]
    num_layers: int
    scores_L: np.ndarray | None = None
    """float64; None if the choice needs no scores or was restored from a checkpoint."""
    spread_2L: np.ndarray | None = None
    """Spread of the scores over clients: :func:`server.selection.score_spread`; None if it is not known."""
    share: float | None = None
    """Share of the layers to exchange; None if the choice does not use it or was restored."""
    estimate: ShareEstimate | None = None
    """Set if the share was estimated from the clients' spectra."""

    def record(self) -> dict[str, Any]:
        """Return the event ``layers``."""
        return {
            "layers": list(self.layers),
            "num_layers": self.num_layers,
            "scores": None if self.scores_L is None else self.scores_L.tolist(),
            "scores_spread": None if self.spread_2L is None else self.spread_2L.tolist(),
            "share": self.share,
            "share_rule": "fixed" if self.estimate is None else self.estimate.rule,
            "share_cost": None if self.estimate is None else asdict(self.estimate.cost),
        }

    def spectra(self) -> list[dict[str, Any]]:
        """Return the events ``spectrum``, one per client."""
        if self.estimate is None:
            return []
        by_examples = self.estimate.weighting == "examples"
        records = []
        for report in self.estimate.reports:
            record = asdict(report)
            record["weight"] = report.num_examples if by_examples else 1
            record["seconds_client"] = record.pop("seconds")  # every event has its own ``seconds``
            record.pop("failure")
            records.append(record)
        return records


def select_layers(config: Config, console: Console) -> LayerChoice:
    """Start workers, let the clients score the layers, and return the choice; used by ``fedsim layers``."""
    with InterruptWatch() as watch, Progress(config.rounds, "score", console) as progress, ExitStack() as stack:
        config, data = settled(config)
        executor = make_executor(config, watch.check, progress.note)
        stack.callback(executor.close)
        prepared = prepare(config, progress.start_phase, executor, data, Kept.of(config.cache, progress.note))
        for note in prepared.data.notes:
            progress.note(note)
        workers = start_workers(config, prepared, executor, progress)
        sizes_N = prepared.spec.shards.train_sizes
        initial, phase = prepared.spec.initial_vector, progress.start_phase
        computed = Computed(prepared.kept, config, prepared, workers)
        try:
            return choose(config, executor, workers[0].full, sizes_N, initial, phase, progress.note, computed)
        except StateLost as loss:
            raise ResourceError(f"{loss}; run the command again") from loss


def start_workers(config: Config, prepared: Prepared, executor: Executor, progress: Progress) -> list[WorkerInfo]:
    """Start the executor's workers and check that the texts and the starting point fit the backbone."""
    progress.start_phase("starting workers" if config.executor == "local" else "starting Ray and its actors")
    workers = executor.start(prepared.spec)
    check_lengths(config, prepared.spec, workers[0].max_tokens)
    if (slow := sorted({worker.node for worker in workers if worker.emulates_products})) != []:
        progress.note(
            f"warning: model.products=bfloat16 is slow on {listed(slow, 3)}, whose processors have no instructions for it; set "
            "model.products=float32"
        )
    if prepared.spec.start is not None:
        progress.note(check_start(config, prepared.spec.start, workers[0].full))
    return workers


def choose(
    config: Config,
    executor: Executor,
    full: VectorLayout,
    sizes_N: np.ndarray,
    initial: InitialVector,
    phase: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    computed: Computed | None = None,
) -> LayerChoice:
    """Choose the exchanged layers.

    With ``layers.choose: score`` the clients first score all layers, with a prompt in each. Unless ``layers.share_rule`` is
    fixed, the number of layers comes from the clients' spectra after a warm-up (:mod:`fedsim.simulation.layer_share`).

    Parameters
    ----------
    full
        Layout with a prompt in every layer.
    sizes_N
        Training examples of each client.
    initial
        Initial parameters of a layout.
    phase
        Called with the current phase, for the progress display.
    note
        Called with warnings about clients that failed and were dropped.
    computed
        Where scores of earlier runs are.

    Raises
    ------
    ClientError
        If a client fails, or, with ``client.on_failure: drop``, if all do.
    """
    layers, num_layers = config.layers, full.geometry.num_layers
    if len(full.layers) < num_layers:  # the tuner trains numbers in one layer, so there is nothing to choose
        return LayerChoice(full.layers, num_layers)
    if layers.choose in ("all", "fixed"):
        return LayerChoice(choose_layers(layers, num_layers, None, config.seed), num_layers)
    estimate = None
    if layers.share_rule != "fixed":
        estimate = estimate_share(config, executor, full, sizes_N, phase, initial, note)
    share = layers.share if estimate is None else estimate.share
    scores_L = spread_2L = None
    if layers.choose == "score":
        phase("scoring layers")
        if layers.score_batch_size == 1:
            note(
                "warning: layers.score_batch_size=1 leaves no pairs of examples to compare, so all layers score the same and "
                "their ranking means nothing; give 2 or more, or name layers with layers.choose=fixed and layers.fixed"
            )
        scores_L, spread_2L = score(config, executor, full, initial, note, computed)
    chosen = choose_layers(layers, num_layers, scores_L, config.seed, share)
    return LayerChoice(chosen, num_layers, scores_L, spread_2L, share, estimate)


def score(
    config: Config,
    executor: Executor,
    full: VectorLayout,
    initial: InitialVector,
    note: Callable[[str], None] = lambda text: None,
    computed: Computed | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the layer scores [L], combined over clients, at the initial parameters of all layers, and their spread [2, L].

    They are kept if no client failed.
    """
    start, clients = GlobalState(0, full.layers, initial(full)), _scoring_clients(config)
    slot = None if computed is None else computed.scores(start, clients)
    if slot is not None:
        held = slot.get(lambda record: scores_of(record, full.geometry.num_layers))
        if held is not None:
            return held
    state = executor.put(start)
    size = 1 if executor.per_client else 4 * config.group_size
    groups = [tuple(clients[start : start + size]) for start in range(0, len(clients), size)]
    reports = usable(executor.score(state, groups), "to score the layers", config.client.on_failure, note)
    scores_kL, num_examples = [report.scores_L for report in reports], [report.num_examples for report in reports]
    scores_L, spread_2L = combine_scores(scores_kL, num_examples), score_spread(scores_kL, num_examples)
    if slot is not None and len(reports) == len(clients):
        slot.put(scores_record(scores_L, spread_2L))
    return scores_L, spread_2L


def _scoring_clients(config: Config) -> list[int]:
    population, wanted = config.partition.population, config.layers.score_clients
    if wanted is None or wanted >= population:
        return list(range(population))
    rng = seeds.stream(config.seed, seeds.NO_ROUND, seeds.NO_CLIENT, "score")
    return sorted(int(client) for client in rng.choice(population, wanted, replace=False))
