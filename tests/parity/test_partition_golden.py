"""Our partitions against label counts of the published code, as distributions over clients."""

from __future__ import annotations

import numpy as np
import pytest

from partitions import partition
from partitions.config import PartitionConfig

# dirichlet_label with alpha 0.1 is not here: the published code does not end, its counts are of partial deals.
SETTINGS = [
    ("iid", 1.0),
    ("dirichlet_quantity", 1.0),
    ("dirichlet_quantity", 10.0),
    ("dirichlet_label", 1.0),
    ("dirichlet_label", 10.0),
]


def deals(kind: str, num_classes: int, alpha: float, about: dict) -> np.ndarray:
    """Return label counts [seed, client, class] of our partitions, as many as the trace has."""
    shares = np.array(about["class_shares"][str(num_classes)])
    sizes = np.round(shares * about["train"]).astype(int)
    labels_N = np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), sizes))
    skew = {} if kind == "iid" else {"alpha": alpha}
    config = PartitionConfig(kind=kind, clients=about["num_clients"], holdout_fraction=0.0, **skew)
    shards = [partition(config, labels_N, None, seed) for seed in about["seeds"]]
    return np.stack([shard.label_counts(labels_N, num_classes) for shard in shards])


def figures(counts_SCK: np.ndarray) -> dict[str, np.ndarray]:
    """Return size, label entropy and share of the most frequent class of each client of each deal."""
    counts_CK = counts_SCK.reshape(-1, counts_SCK.shape[-1])
    sizes_C = counts_CK.sum(axis=1)
    shares_CK = counts_CK / np.maximum(sizes_C, 1)[:, None]
    logs_CK = np.log(shares_CK, out=np.zeros_like(shares_CK), where=shares_CK > 0)
    return {
        "size": sizes_C.astype(float),
        "entropy": -(shares_CK * logs_CK).sum(axis=1),
        "top share": shares_CK.max(axis=1),
    }


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest distance of the two distribution functions (Kolmogorov and Smirnov)."""
    points = np.unique(np.concatenate([one, other]))
    shares = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (one, other))
    return float(np.abs(np.subtract(*shares)).max())


@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize("kind, alpha", SETTINGS)
def test_distributions_agree_with_the_published_code(load_golden, kind, num_classes, alpha):
    arrays, description = load_golden("04_partition")
    published = arrays[f"{kind}.k{num_classes}.a{alpha:g}.train"].astype(int)
    published = published[(published >= 0).all(axis=(1, 2))]
    counts = deals(kind, num_classes, alpha, description["config"])
    assert (counts.sum(axis=(1, 2)) == description["config"]["train"]).all()
    # The published code gives what rounding leaves over to its first client, so that client is left out.
    theirs, ours = figures(published[:, 1:]), figures(counts[:, 1:])
    for name in theirs:
        a, b = ours[name], theirs[name]
        # Chance of a false alarm, once for every comparison: 2 exp(-2 * 2.4^2) = 2e-5, and 5 standard errors of a mean.
        assert distance(a, b) < 2.4 * np.sqrt(1 / len(a) + 1 / len(b)), name
        assert abs(a.mean() - b.mean()) <= 5 * np.sqrt(a.var() / len(a) + b.var() / len(b)) + 1e-9, name


@pytest.mark.parametrize("num_classes", [2, 6])
def test_label_skew_ends_where_the_published_code_does_not(load_golden, num_classes):
    arrays, description = load_golden("04_partition")
    assert (arrays[f"dirichlet_label.k{num_classes}.a0.1.unplaced"] > 0).any()
    published = description["summary"][f"dirichlet_label.k{num_classes}.a0.1"]
    ours = deals("dirichlet_label", num_classes, 0.1, description["config"])
    assert (ours.sum(axis=(1, 2)) == description["config"]["train"]).all()
    # The last examples go to clients that have no prior for them, so ours is a little less skewed than a partial deal.
    top_share_C = figures(ours)["top share"]
    noise = 5 * top_share_C.std() / np.sqrt(len(top_share_C))
    assert -0.12 - noise < top_share_C.mean() - published["top_class_share_mean"] < noise


def test_the_comparison_can_fail(load_golden):
    """One step of alpha, and equal instead of drawn sizes, are told apart."""
    arrays, description = load_golden("04_partition")
    theirs = figures(arrays["dirichlet_label.k2.a1.train"].astype(int)[:, 1:])
    other_alpha = figures(deals("dirichlet_label", 2, 10.0, description["config"])[:, 1:])
    equal_sizes = figures(deals("iid", 2, 1.0, description["config"])[:, 1:])
    for name, ours in (("entropy", other_alpha), ("size", equal_sizes)):
        limit = 2.4 * np.sqrt(1 / len(ours[name]) + 1 / len(theirs[name]))
        assert distance(ours[name], theirs[name]) > 2 * limit
