"""Clients that hold a fixed number of classes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.core.errors import PartitionError
from partitions.base import PARTITIONERS, Partitioner


@PARTITIONERS.register("label_shards")
class LabelShards(Partitioner):
    """Cuts the classes into shards and gives each client shards of ``classes_per_client`` different classes.

    After McMahan et al. 2017 (arXiv 1602.05629), who sort by label, cut into equal shards and give each client two.
    There a shard can span classes and a client can get a class twice; here each shard holds one class, the number of
    a class's shards follows its size, and a client holds exactly ``classes_per_client`` classes.
    """

    keys = ("classes_per_client",)
    by_labels = True

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        classes, counts_K = np.unique(labels_N, return_counts=True)
        shards_K = self._shards_of_classes(counts_K)
        members = [rng.permutation(np.flatnonzero(labels_N == label)) for label in classes]
        shards = [np.array_split(members[k], shards_K[k]) for k in range(len(classes))]
        choices = choose_classes(shards_K, self.config.population, self.config.classes_per_client, rng)
        return [np.concatenate([shards[k].pop() for k in chosen]) for chosen in choices]

    def _shards_of_classes(self, counts_K: np.ndarray) -> list[int]:
        """Return the number of shards per class: at least one, at most one per client and one per example."""
        clients, wanted = self.config.population, self.config.classes_per_client
        if wanted > len(counts_K):
            raise PartitionError(
                f"partition.classes_per_client is {wanted}, but the training examples have only {len(counts_K)} "
                f"classes; set it to {len(counts_K)} or less"
            )
        if clients * wanted < len(counts_K):
            raise PartitionError(
                f"{clients} clients with partition.classes_per_client={wanted} cannot hold all {len(counts_K)} "
                f"classes; raise one of them until their product is {len(counts_K)} or more"
            )
        limits_K = np.minimum(counts_K, clients)
        if int(limits_K.sum()) < clients * wanted:
            raise PartitionError(
                f"{clients} clients with partition.classes_per_client={wanted} need {clients * wanted} shards, but the "
                f"classes have only enough examples for {int(limits_K.sum())}; lower partition.clients or "
                f"partition.classes_per_client"
            )
        shards_K = [1] * len(counts_K)
        # Highest averages: the next shard goes to the class with the largest shards, which balances shard sizes.
        heap = [(-float(count), k) for k, count in enumerate(counts_K) if limits_K[k] > 1]
        heapq.heapify(heap)
        for _ in range(clients * wanted - len(counts_K)):
            _, k = heapq.heappop(heap)
            shards_K[k] += 1
            if shards_K[k] < limits_K[k]:
                heapq.heappush(heap, (-float(counts_K[k]) / shards_K[k], k))
        return shards_K


def choose_classes(
    shards_K: Sequence[int], clients: int, classes_per_client: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return ``classes_per_client`` different classes for each client, class k for ``shards_K[k]`` of the clients.

    A class with as many shards left as there are clients left must go to the next client; the others are drawn in
    proportion to their shards left. So no class ever has more shards than clients left, and the draw cannot fail.
    """
    left_K = np.array(shards_K, dtype=np.int64)
    choices = []
    for clients_left in range(clients, 0, -1):
        forced = left_K == clients_left
        # An exponential race: the smallest waiting times are a draw without replacement in proportion to the rates.
        with np.errstate(divide="ignore"):
            times_K = rng.standard_exponential(len(left_K)) / left_K
        chosen = np.argsort(np.where(forced, -1.0, times_K), kind="stable")[:classes_per_client]
        left_K[chosen] -= 1
        choices.append(np.sort(chosen))
    order = rng.permutation(clients)
    return [choices[position] for position in order]
