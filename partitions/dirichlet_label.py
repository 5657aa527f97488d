"""Label skew as in the published code of FedPepTAO: client sizes, then class priors of each client."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from partitions.base import PARTITIONERS, Partitioner, apportion, dirichlet, log_dirichlet


@PARTITIONERS.register("dirichlet_label")
class DirichletLabel(Partitioner):
    """Deals examples one by one to clients with sizes from Dirichlet(size_alpha) and priors from Dirichlet(alpha).

    The procedure of Acar et al. 2021 (FedDyn, arXiv 2111.04263), used by FedPepTAO (arXiv 2310.15080) with
    size_alpha = 5: a random client with room takes an example of a class drawn from its prior. If that class is used
    up, the draw is among the remaining classes, in proportion to the client's prior on them, so it ends for every
    alpha; the published code draws again from the whole prior, which may never end. Sizes are rounded by largest
    remainders; the published code gives the rounding remainder to one client.
    """

    keys = ("alpha", "size_alpha")
    by_labels = True

    remedy = "raise partition.size_alpha, "

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        config = self.config
        sizes_C = apportion(dirichlet(rng, config.size_alpha, (config.population,)), len(labels_N))
        classes = np.unique(labels_N)
        log_priors_CK = log_dirichlet(rng, config.alpha, (config.population, len(classes)))
        stocks = [rng.permutation(np.flatnonzero(labels_N == label)).tolist() for label in classes]
        parts: list[list[int]] = [[] for _ in range(config.population)]
        # Plain lists: the draws depend on one another, and scalar access to lists is many times faster than to arrays.
        thresholds_CK = _thresholds(log_priors_CK, stocks)
        for client, uniform in zip(_takers(sizes_C, rng), rng.random(len(labels_N)).tolist(), strict=True):
            stock = stocks[bisect_right(thresholds_CK[client], uniform)]
            parts[client].append(stock.pop())
            if not stock and any(stocks):
                thresholds_CK = _thresholds(log_priors_CK, stocks)
        return [np.array(part, dtype=np.int64) for part in parts]


def _takers(sizes_C: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Yield the client that takes the next example, drawn uniformly from those with room."""
    room = sizes_C.tolist()
    waiting = [client for client, size in enumerate(room) if size]
    for uniform in rng.random(int(sizes_C.sum())).tolist():
        position = int(uniform * len(waiting))
        client = waiting[position]
        yield client
        room[client] -= 1
        if not room[client]:
            waiting[position] = waiting[-1]
            waiting.pop()


def _thresholds(log_priors_CK: np.ndarray, stocks: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return each client's cumulative prior over the remaining classes, to draw a class with one uniform number."""
    left_K = np.array([bool(stock) for stock in stocks])
    logs_CK = np.where(left_K, log_priors_CK, -np.inf)
    # Relative to the largest remaining prior, so that 1e-300 on the only remaining class becomes 1.
    with np.errstate(over="ignore"):
        priors_CK = np.exp(logs_CK - logs_CK.max(axis=1, keepdims=True))
    cumulative_CK = np.cumsum(priors_CK / priors_CK.sum(axis=1, keepdims=True), axis=1)
    cumulative_CK[:, np.flatnonzero(left_K)[-1] :] = 1.0
    result: list[list[float]] = cumulative_CK.tolist()
    return result
