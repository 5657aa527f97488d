"""The devices of a run: what a visit costs each of them follows from model, chosen layers, method and data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clients.budget import population_of
from clients.spec import WorkerSpec
from clients.training.local_job import Parts, num_processed, sees_all
from fedsim.configuration.schema import Config
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Plain
from fedsim.core.compression.links import most_bytes, positives, sent_down, sent_up
from fedsim.core.compression.message import Packer
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import VECTOR
from fedsim.world.cost import Downloads, VisitCost, layer_share
from fedsim.world.devices import GIGABYTE, Devices
from fedsim.world.traces.read import Recorded

_OPTIMIZER = 4
"""Arrays as long as the trained vector that training holds: parameters, gradient, two moments."""


def devices_of(
    config: Config, spec: WorkerSpec, full: VectorLayout, layers: tuple[int, ...], recorded: Recorded
) -> Devices | None:
    """Return the devices of a run's clients; None if none are simulated.

    Parameters
    ----------
    full
        Layout of all layers.
    layers
        The exchanged layers.
    recorded
        What files say of the devices.

    Raises
    ------
    ConfigError
        If a file of devices or traces cannot be used.
    """
    if config.world.devices is None:
        return None
    cost = visit_cost(config, spec, full, layers)
    return Devices.of(config.world.devices, config.seed, cost, spec.train_sizes, recorded.devices, recorded.traces)


def visit_cost(config: Config, spec: WorkerSpec, full: VectorLayout, layers: tuple[int, ...]) -> VisitCost:
    """Return what a visit costs each client; see docs/world.md for what is ours in it."""
    client, sizes_N, depth = config.client, spec.train_sizes, full.geometry.num_layers
    lowest = _lowest(spec, full, layers)
    mean_N = _mean_tokens(spec)
    work_N = _of_sizes(lambda size: num_processed(client, size), sizes_N) * mean_N
    cached_N = _of_sizes(lambda size: sees_all(client, size), sizes_N).astype(bool) & spec.caches(layers)
    searched = client.optimizer.kind == "cma_es"
    candidates = population_of(client.optimizer, spec.exchanged(full, layers).size)
    kept, plain = (
        layer_share(depth, lowest, cached=cached, backward=not searched, candidates=candidates)
        for cached in (True, False)
    )
    tokens_N = work_N * np.where(cached_N, kept, plain)
    filling_N = np.where(cached_N, mean_N * sizes_N * lowest / (2 * depth), 0.0)
    down, up, trained = _bytes(config, spec, full, layers)
    downloads = _downloads(config, spec.exchanged(full, layers))
    given = config.world.devices.needed_gigabytes if config.world.devices is not None else None
    needed = given * GIGABYTE if given is not None else float(spec.weights.nbytes + _OPTIMIZER * trained)
    return VisitCost(tokens_N, tokens_N + filling_N, down, up, needed, downloads)


def _lowest(spec: WorkerSpec, full: VectorLayout, layers: tuple[int, ...]) -> int:
    """Return the lowest tuned layer; the number of layers where only what is behind the last one is trained."""
    depth = full.geometry.num_layers
    if spec.training.keep_local:
        return 0
    return depth if spec.tuner.reads_output and spec.caches(layers) else min(layers, default=depth)


def _mean_tokens(spec: WorkerSpec) -> np.ndarray:
    """Return the mean length of each client's training texts, in tokens; 0 for a client without any."""
    shards, sizes_N = spec.shards, spec.train_sizes
    owner_Z = np.repeat(np.arange(shards.num_clients), sizes_N)
    before_N = np.cumsum(sizes_N) - sizes_N
    rows_Z = np.arange(len(owner_Z)) - before_N[owner_Z] + shards.offsets_C1[owner_Z]
    lengths_Z = np.asarray(spec.train.lengths_N)[shards.indices_N[rows_Z]]
    sums_N = np.bincount(owner_Z, weights=lengths_Z, minlength=shards.num_clients)
    mean_N: np.ndarray = sums_N / np.maximum(sizes_N, 1)
    return mean_N


def _of_sizes(value: Callable[[int], float], sizes_N: np.ndarray) -> np.ndarray:
    """Return a function of the number of examples for all clients; clients of one size share its value."""
    unique, where_N = np.unique(sizes_N, return_inverse=True)
    return np.array([value(int(size)) for size in unique], dtype=np.float64)[where_N]


def _bytes(
    config: Config, spec: WorkerSpec, full: VectorLayout, layers: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return the bytes down and up by round, where rounds take turns, and those of the trained numbers."""
    itemsize = np.dtype(config.model.exchange_dtype).itemsize
    whole = spec.exchanged(full, layers).size * itemsize
    turns = range(max(1, len(spec.tuner.turns(full.geometry))))
    parts = [Parts.of(full, layers, spec.training.keep_local, spec.tuner, round) for round in turns]
    sizes = [part.exchanged.size * itemsize for part in parts]
    traffic = config.traffic
    down = tuple(traffic.bytes_down(size, whole) for size in sizes)
    up, corrections = tuple(map(traffic.bytes_up, sizes)), config.method.corrections
    if (link := config.uplink) is not None:
        names = sent_up(corrections, config.client)
        up = tuple(most_bytes(link, names, corrections, Blocks.of(part.exchanged), itemsize) for part in parts)
    return down, up, max(part.trained.size for part in parts) * itemsize


def _downloads(config: Config, exchanged: VectorLayout) -> Downloads | None:
    """Return what devices receive where it is compressed; None if it is not."""
    if (link := config.downlink) is None:
        return None
    corrections, itemsize = config.method.corrections, np.dtype(config.model.exchange_dtype).itemsize
    names, blocks = sent_down(corrections, config.client, config.method.serves), Blocks.of(exchanged)
    whole = Packer(Plain(), "none").most_bytes(blocks, itemsize)
    if link.exact:
        return Downloads(whole, 0, 0, whole * len(names))
    anew = [name for name in names if name in positives(corrections)]
    change = most_bytes(link, [VECTOR], corrections, blocks, itemsize)
    always = most_bytes(link, anew, corrections, blocks, itemsize)
    return Downloads(whole, change, len(names) - len(anew), always)
