"""The base class and registry of partitioners, retries, and the split into training and held-out examples.

Shape suffixes: N examples, C clients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fedsim.core import seeds
from fedsim.core.errors import PartitionError
from fedsim.core.plugins import guarded
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema
from fedsim.core.shards import Shards
from partitions.config import PartitionConfig

_OURS = ("iid", "dirichlet_label", "dirichlet_class", "dirichlet_quantity", "label_shards", "by_column")
"""Built-in partitioners, one module each."""


class Partitioner(ABC):
    """Deals example numbers out to clients; subclasses implement :meth:`deal`.

    A plug-in's own keys are the fields of its class ``Config``, a :class:`fedsim.core.schema.Schema`: users set them in the
    section ``params.KIND``, and the partitioner reads them from :attr:`params`.

    Parameters
    ----------
    config
        The ``partition`` section.
    params
        The plug-in's own keys, if it has any.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the section that this kind reads, besides ``clients``, ``min_size``, ``max_tries`` and ``holdout_fraction``; keys
    that only other kinds read are refused."""
    by_labels: ClassVar[bool] = False
    """Whether it deals by labels, so that a task without them is refused; other kinds get zeros in their place."""
    remedy: ClassVar[str] = ""
    """Advice for clients that stay too small, besides changing clients and min_size."""

    def __init__(self, config: PartitionConfig, params: Any = None) -> None:
        self.config, self.params = config, params

    @abstractmethod
    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the int64 example numbers of each client, without repeats.

        Parameters
        ----------
        labels_N
            Class number of each example.
        column
            Each example's value of ``partition.column``, or None if the data have no such column.
        rng
            The only source of randomness.

        Raises
        ------
        PartitionError
            If no draw can meet the config.
        """

    def deal_large_enough(
        self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return the first of at most ``max_tries`` deals in which every client holds ``min_size`` examples.

        Raises
        ------
        PartitionError
            If none does, or if there are too few examples.
        """
        config = self.config
        if config.clients is not None and len(labels_N) < config.clients * config.min_size:
            most = len(labels_N) // config.min_size
            raise PartitionError(
                f"partition.clients={config.clients} with partition.min_size={config.min_size} needs at least "
                f"{config.clients * config.min_size} training examples, but there are {len(labels_N)}; "
                + (f"set partition.clients={most} or less" if most else "lower partition.min_size")
            )
        largest_minimum = 0
        for _ in range(config.max_tries):
            parts = self.deal(labels_N, column, rng)
            smallest = min(len(part) for part in parts)
            if smallest >= config.min_size:
                return parts
            largest_minimum = max(largest_minimum, smallest)
        raise PartitionError(
            f"in none of {config.max_tries} draws of partition.kind={config.kind} did every client get "
            f"partition.min_size={config.min_size} examples (best smallest client: {largest_minimum}); {self.remedy}"
            f"lower partition.clients={config.clients} or lower partition.min_size"
        )


PARTITIONERS: Registry[type[Partitioner]] = Registry(
    "partitioner",
    "partition.kind",
    tuple(f"partitions.{kind}" for kind in _OURS),
    check=subclass_of(Partitioner),
)
"""Partitioner for each ``partition.kind``."""


def partition(
    config: PartitionConfig,
    labels_N: np.ndarray,
    column_values: Sequence[Any] | None,
    seed: int,
    params: Schema | None = None,
) -> Shards:
    """Deal a dataset out to clients.

    Every example is used exactly once, except that ``by_column`` leaves out the values that it did not draw; with
    ``config.clients`` None it takes all that are large enough.
    Each client keeps its examples in ascending order and holds out some, drawn from the client's own random stream:
    ``holdout_fraction`` of its examples, rounded down, but never its last example.

    Parameters
    ----------
    config
        The ``partition`` section.
    labels_N
        Class number of each training example.
    column_values
        Each example's value of ``config.column``, or None if the data have no such column.
    seed
        The run's root seed.
    params
        The own keys of a plug-in partitioner.

    Raises
    ------
    PartitionError
        If the examples cannot be dealt out as the config requires.
    PluginError
        If a plug-in partitioner fails, deals to the wrong number of clients, or deals an example twice.
    """
    labels_N = np.asarray(labels_N)
    if column_values is not None and len(column_values) != len(labels_N):
        raise ValueError(f"{len(column_values)} column values do not match {len(labels_N)} labels")
    rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "partition")
    with guarded(f"the partitioner {config.kind!r}", PARTITIONERS.origin(config.kind)):
        partitioner = PARTITIONERS[config.kind](config, params)
        parts = [np.asarray(part) for part in partitioner.deal_large_enough(labels_N, column_values, rng)]
        _check_deal(config, parts, len(labels_N))
    return _shards(parts, config.holdout_fraction, seed)


def _check_deal(config: PartitionConfig, parts: Sequence[np.ndarray], num_examples: int) -> None:
    if config.clients not in (None, len(parts)):
        raise ValueError(f"it dealt to {len(parts)} clients, not to {config.clients}")
    if any(part.ndim != 1 or not np.issubdtype(part.dtype, np.integer) for part in parts if part.size):
        raise ValueError("it did not return a list of example numbers for each client")
    dealt = np.concatenate([part.astype(np.int64) for part in parts])
    if dealt.size and not (dealt.min() >= 0 and dealt.max() < num_examples):
        raise ValueError(f"it dealt out example {dealt.min() if dealt.min() < 0 else dealt.max()} of {num_examples}")
    if np.bincount(dealt, minlength=1).max() > 1:
        raise ValueError(f"it dealt example {np.bincount(dealt).argmax()} out more than once")


def _shards(parts: Sequence[np.ndarray], holdout_fraction: float, seed: int) -> Shards:
    pieces: list[np.ndarray] = []
    train_sizes: list[int] = []
    for client, part in enumerate(parts):
        rng = seeds.stream(seed, seeds.NO_ROUND, client, "holdout")
        drawn = rng.permutation(np.sort(part))
        num_train = len(part) - holdout_size(len(part), holdout_fraction)
        pieces += [np.sort(drawn[:num_train]), np.sort(drawn[num_train:])]
        train_sizes.append(num_train)
    offsets_C1 = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Shards(
        indices_N=np.concatenate(pieces).astype(np.int64),
        offsets_C1=offsets_C1,
        train_stops_C=offsets_C1[:-1] + np.array(train_sizes, dtype=np.int64),
    )


def holdout_size(num_examples: int, fraction: float) -> int:
    """Return how many of a client's examples are held out: the fraction, rounded down, but at least one stays for training."""
    # The epsilon keeps 0.29 * 100 = 28.999999999999996 from losing an example.
    return min(math.floor(fraction * num_examples + 1e-9), max(num_examples - 1, 0))


def log_dirichlet(rng: np.random.Generator, alpha: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return logarithms of symmetric Dirichlet draws along the last axis, up to a constant per draw.

    A gamma variate with a small shape underflows to zero, and so could a whole draw; its logarithm does not:
    log Gamma(alpha) = log Gamma(alpha + 1) + log(U) / alpha (Marsaglia & Tsang 2000, section 6).
    """
    with np.errstate(over="ignore"):
        logs = np.log(rng.standard_gamma(alpha + 1.0, shape)) + np.log1p(-rng.random(shape)) / alpha
    return np.maximum(logs, np.finfo(np.float64).min)


def dirichlet(rng: np.random.Generator, alpha: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return symmetric Dirichlet draws along the last axis, for every positive ``alpha``."""
    logs = log_dirichlet(rng, alpha, shape)
    with np.errstate(over="ignore"):
        shares = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def apportion(shares_C: np.ndarray, total: int) -> np.ndarray:
    """Return int64 sizes that sum to ``total``, in proportion to ``shares_C`` by largest remainders."""
    exact_C = shares_C * total
    sizes_C = np.floor(exact_C).astype(np.int64)
    missing = total - int(sizes_C.sum())
    sizes_C[np.argsort(sizes_C - exact_C, kind="stable")[:missing]] += 1
    return sizes_C
