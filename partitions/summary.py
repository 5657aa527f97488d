"""What a partition looks like: sizes, label skew, and the table behind a picture of it.

Shape suffixes: N examples, C clients, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.shards import Shards


@dataclass(frozen=True)
class PartitionSummary:
    """Figures over all examples of each client, training and held out together."""

    num_clients: int
    num_examples: int
    num_train: int
    num_holdout: int
    size_min: int
    size_median: float
    size_mean: float
    size_std: float
    size_max: int
    label_entropy_mean: float
    """Mean over clients of the entropy of their labels, in nats; log(K) where every client has all classes alike."""
    label_entropy_std: float
    top_class_share_mean: float
    """Mean over clients of the share of their most frequent class."""
    class_names: tuple[str, ...]
    counts_CK: np.ndarray
    """int64 examples of each client and class."""

    def rows(self) -> list[tuple[str, str]]:
        """Return ``(name, figure)`` pairs for a printed table."""
        totals_K = self.counts_CK.sum(axis=0)
        classes = ", ".join(f"{name} {total}" for name, total in zip(self.class_names, totals_K, strict=True))
        uniform = np.log(len(self.class_names))
        return [
            ("clients", f"{self.num_clients:,}"),
            ("examples", f"{self.num_examples:,} ({self.num_train:,} to train, {self.num_holdout:,} held out)"),
            ("examples a client", f"{self.size_min} min, {self.size_median:g} median, {self.size_max} max"),
            (
                "label entropy a client",
                f"{self.label_entropy_mean:.3f} nats on average (all classes alike: {uniform:.3f})",
            ),
            ("largest class a client", f"{self.top_class_share_mean:.1%} on average"),
            ("examples by class", classes),
        ]


def summarise(shards: Shards, labels_N: np.ndarray, class_names: Sequence[str]) -> PartitionSummary:
    """Return the summary of a partition.

    Parameters
    ----------
    labels_N
        Class number of each training example, in ``range(len(class_names))``.
    """
    sizes_C = shards.sizes
    counts_CK = shards.label_counts(labels_N, len(class_names))
    shares_CK = counts_CK / np.maximum(sizes_C, 1)[:, None]
    logs_CK = np.log(shares_CK, out=np.zeros_like(shares_CK), where=shares_CK > 0)
    entropy_C = -(shares_CK * logs_CK).sum(axis=1)
    return PartitionSummary(
        num_clients=shards.num_clients,
        num_examples=int(sizes_C.sum()),
        num_train=int(shards.train_sizes.sum()),
        num_holdout=int(shards.holdout_sizes.sum()),
        size_min=int(sizes_C.min()),
        size_median=float(np.median(sizes_C)),
        size_mean=float(sizes_C.mean()),
        size_std=float(sizes_C.std()),
        size_max=int(sizes_C.max()),
        label_entropy_mean=float(entropy_C.mean()),
        label_entropy_std=float(entropy_C.std()),
        top_class_share_mean=float(shares_CK.max(axis=1).mean()),
        class_names=tuple(class_names),
        counts_CK=counts_CK,
    )
