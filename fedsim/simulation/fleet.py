"""The devices of a run: what a visit costs each of them follows from model, chosen layers, method and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.budget import population_of
from clients.training.local_job import Parts, num_processed, sees_all
from fedsim.configuration.schema import Config
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Plain
from fedsim.core.compression.links import most_bytes, positives, sent_down, sent_up
from fedsim.core.compression.message import Packer
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import VECTOR
from fedsim.core.shards import Shards
from fedsim.world.cost import Downloads, VisitCost, layer_share
from fedsim.world.devices import Devices
from fedsim.world.enough import GIGABYTE, check_enough
from fedsim.world.traces.read import Recorded

if TYPE_CHECKING:
    from clients.spec import WorkerSpec
    from clients.tuners.tuner import Tuner

_OPTIMIZER = 4
"""Arrays as long as the trained vector that training holds: parameters, gradient, two moments."""


@dataclass(frozen=True)
class Work:
    """What of a run the cost of its visits follows from; none of it needs the model to be loaded.

    Shape suffix: N clients.
    """

    tuner: Tuner
    sizes_N: np.ndarray
    """Training examples of each client."""
    mean_tokens_N: np.ndarray
    """Mean length of each client's training texts; 0 for a client without any."""
    weight_bytes: float
    """Of the frozen weights."""
    keep_local: bool
    """Whether layers that are not exchanged are trained as well."""
    may_cache: bool
    """Whether clients keep what the frozen model computes below the lowest tuned layer, if there is such a thing."""

    @classmethod
    def of_spec(cls, spec: WorkerSpec) -> Work:
        """Return the work of a run whose model is loaded."""
        return cls(
            tuner=spec.tuner,
            sizes_N=spec.train_sizes,
            mean_tokens_N=mean_lengths(spec.shards, np.asarray(spec.train.lengths_N)),
            weight_bytes=float(spec.weights.nbytes),
            keep_local=spec.training.keep_local,
            may_cache=spec.caches((1,)),
        )

    def caches(self, layers: tuple[int, ...]) -> bool:
        """See :meth:`clients.spec.WorkerSpec.caches`."""
        return self.may_cache and bool(layers) and (self.tuner.reads_output or min(layers) > 0)

    def exchanged(self, full: VectorLayout, layers: tuple[int, ...]) -> VectorLayout:
        """See :meth:`clients.spec.WorkerSpec.exchanged`."""
        return Parts.of(full, layers, False, self.tuner).exchanged

    def lowest(self, full: VectorLayout, layers: tuple[int, ...]) -> int:
        """Return the lowest tuned layer; the number of layers where only what is behind the last one is trained."""
        depth = full.geometry.num_layers
        if self.keep_local:
            return 0
        return depth if self.tuner.reads_output and self.caches(layers) else min(layers, default=depth)

    def needed_bytes(self, config: Config, full: VectorLayout, layers: tuple[int, ...]) -> float:
        """Return the memory that training takes: as given, or the frozen weights and what the optimizer keeps."""
        given = config.world.devices.needed_gigabytes if config.world.devices is not None else None
        if given is not None:
            return given * GIGABYTE
        return self.weight_bytes + _OPTIMIZER * _trained_bytes(config, self, full, layers)


def devices_of(
    config: Config, work: Work, full: VectorLayout, layers: tuple[int, ...], recorded: Recorded
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
    cost = visit_cost(config, work, full, layers)
    return Devices.of(config.world.devices, config.seed, cost, work.sizes_N, recorded.devices, recorded.traces)


def check_clients(config: Config, sizes_N: np.ndarray, recorded: Recorded, needed_bytes: float | None = None) -> None:
    """Refuse a run with too few clients that can be drawn; it needs no model, and with its memory known, no more than that.

    Parameters
    ----------
    needed_bytes
        Memory that training takes; if None, ``world.devices.needed_gigabytes``, and without it memory is not looked at.

    Raises
    ------
    ConfigError
        Naming the key and how many clients can be drawn.
    """
    devices = config.world.devices
    if devices is None:
        return
    if needed_bytes is None:
        needed_bytes = (devices.needed_gigabytes or 0.0) * GIGABYTE
    nothing_N = np.zeros(len(sizes_N))
    cost = VisitCost(nothing_N, nothing_N, (0,), (0,), needed_bytes)
    found = Devices.of(devices, config.seed, cost, np.asarray(sizes_N), recorded.devices, recorded.traces)
    sampling = config.sampling.model_copy(update={"clients_per_round": config.clients_per_step})
    check_enough(sampling, config.world, config.buffer, found.drawable)


def visit_cost(config: Config, work: Work, full: VectorLayout, layers: tuple[int, ...]) -> VisitCost:
    """Return what a visit costs each client; see docs/world.md for what is ours in it."""
    client, sizes_N, depth = config.client, work.sizes_N, full.geometry.num_layers
    lowest, mean_N = work.lowest(full, layers), work.mean_tokens_N
    work_N = _of_sizes(lambda size: num_processed(client, size), sizes_N) * mean_N
    cached_N = _of_sizes(lambda size: sees_all(client, size), sizes_N).astype(bool) & work.caches(layers)
    searched = client.optimizer.kind == "cma_es"
    candidates = population_of(client.optimizer, work.exchanged(full, layers).size)
    kept, plain = (
        layer_share(depth, lowest, cached=cached, backward=not searched, candidates=candidates)
        for cached in (True, False)
    )
    tokens_N = work_N * np.where(cached_N, kept, plain)
    filling_N = np.where(cached_N, mean_N * sizes_N * lowest / (2 * depth), 0.0)
    down, up = _bytes(config, work, full, layers)
    downloads = _downloads(config, work.exchanged(full, layers))
    needed = work.needed_bytes(config, full, layers)
    return VisitCost(tokens_N, tokens_N + filling_N, down, up, needed, downloads)


def mean_lengths(shards: Shards, lengths_E: np.ndarray) -> np.ndarray:
    """Return the mean length of each client's training texts, float64 [N]; 0 for a client without any.

    Parameters
    ----------
    lengths_E
        Length of each training example, in tokens.
    """
    sizes_N = shards.train_sizes
    owner_Z = np.repeat(np.arange(shards.num_clients), sizes_N)
    before_N = np.cumsum(sizes_N) - sizes_N
    rows_Z = np.arange(len(owner_Z)) - before_N[owner_Z] + shards.offsets_C1[owner_Z]
    lengths_Z = lengths_E[shards.indices_N[rows_Z]]
    sums_N = np.bincount(owner_Z, weights=lengths_Z, minlength=shards.num_clients)
    mean_N: np.ndarray = sums_N / np.maximum(sizes_N, 1)
    return mean_N


def _of_sizes(value: Callable[[int], float], sizes_N: np.ndarray) -> np.ndarray:
    """Return a function of the number of examples for all clients; clients of one size share its value."""
    unique, where_N = np.unique(sizes_N, return_inverse=True)
    return np.array([value(int(size)) for size in unique], dtype=np.float64)[where_N]


def _parts(work: Work, full: VectorLayout, layers: tuple[int, ...]) -> list[Parts]:
    """Return what is exchanged and trained in each of the rounds that take turns, or in all rounds."""
    turns = range(max(1, len(work.tuner.turns(full.geometry))))
    return [Parts.of(full, layers, work.keep_local, work.tuner, round) for round in turns]


def _trained_bytes(config: Config, work: Work, full: VectorLayout, layers: tuple[int, ...]) -> int:
    """Return the bytes of the numbers that a client trains in a round, at most."""
    return max(part.trained.size for part in _parts(work, full, layers)) * _itemsize(config)


def _itemsize(config: Config) -> int:
    return np.dtype(config.model.exchange_dtype).itemsize


def _bytes(
    config: Config, work: Work, full: VectorLayout, layers: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the bytes down and up by round, where rounds take turns."""
    itemsize, parts = _itemsize(config), _parts(work, full, layers)
    whole = work.exchanged(full, layers).size * itemsize
    sizes = [part.exchanged.size * itemsize for part in parts]
    traffic = config.traffic
    down = tuple(traffic.bytes_down(size, whole) for size in sizes)
    up, corrections = tuple(map(traffic.bytes_up, sizes)), config.method.corrections
    if (link := config.uplink) is not None:
        names = sent_up(corrections, config.client)
        up = tuple(most_bytes(link, names, corrections, Blocks.of(part.exchanged), itemsize) for part in parts)
    return down, up


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
