"""Our partitions against histograms of the published code: 20 seeds, 100 clients, 5,000 examples."""

from types import SimpleNamespace

import numpy as np
import pytest

from partitions import partition
from partitions.config import PartitionConfig

SEEDS = range(20)


def figures(kind, num_classes, alpha, description):
    shares = np.array(description["config"]["class_shares"][str(num_classes)])
    labels_N = np.random.default_rng(0).permutation(
        np.repeat(np.arange(num_classes), np.round(shares * 5000).astype(int))
    )
    config = PartitionConfig(kind=kind, clients=100, alpha=alpha, holdout_fraction=0.0)
    return [summary(partition(config, labels_N, None, seed).label_counts(labels_N, num_classes)) for seed in SEEDS]


def summary(counts_CK):
    """Return the figures that the description of the trace gives, of one partition."""
    sizes_C = counts_CK.sum(axis=1)
    shares_CK = counts_CK / np.maximum(sizes_C, 1)[:, None]
    logs_CK = np.log(shares_CK, out=np.zeros_like(shares_CK), where=shares_CK > 0)
    entropy_C = -(shares_CK * logs_CK).sum(axis=1)
    return SimpleNamespace(
        counts_CK=counts_CK, label_entropy_mean=entropy_C.mean(), label_entropy_std=entropy_C.std(),
        top_class_share_mean=shares_CK.max(axis=1).mean(),
    )  # fmt: skip


# dirichlet_label with alpha 0.1 is not here: the published code does not end, its histograms are of partial deals.
@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize(
    "kind, alpha",
    [
        ("iid", 1.0),
        ("dirichlet_quantity", 1.0),
        ("dirichlet_quantity", 10.0),
        ("dirichlet_label", 1.0),
        ("dirichlet_label", 10.0),
    ],
)
def test_distributions_agree_with_the_published_code(load_golden, kind, num_classes, alpha):
    arrays, description = load_golden("04_partition")
    published = description["summary"][f"{kind}.k{num_classes}.a{alpha:g}"]
    ours = figures(kind, num_classes, alpha, description)
    sizes = np.concatenate([summary.counts_CK.sum(axis=1) for summary in ours])
    entropies = np.array([[s.label_entropy_mean, s.label_entropy_std] for s in ours])
    top_shares = np.array([s.top_class_share_mean for s in ours])
    # Means over 2,000 clients: these tolerances are 3 to 5 standard errors, and far less than one step of alpha.
    assert sizes.mean() == published["size_mean"]
    np.testing.assert_allclose(sizes.std(), published["size_std"], rtol=0.05, atol=1e-12)
    np.testing.assert_allclose(entropies[:, 0].mean(), published["entropy_mean"], atol=0.02)
    np.testing.assert_allclose(entropies[:, 1].mean(), published["entropy_std"], rtol=0.1, atol=0.005)
    np.testing.assert_allclose(top_shares.mean(), published["top_class_share_mean"], atol=0.01)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    histograms = arrays[f"{kind}.k{num_classes}.a{alpha:g}.train"]
    theirs = histograms[(histograms >= 0).all(axis=(1, 2))].sum(axis=2)
    # The published code gives the examples left over by rounding (up to one a client) to the first client.
    np.testing.assert_allclose(np.quantile(sizes, quantiles), np.quantile(theirs[:, 1:], quantiles), rtol=0.1, atol=2)


@pytest.mark.parametrize("num_classes", [2, 6])
def test_label_skew_ends_where_the_published_code_does_not(load_golden, num_classes):
    _, description = load_golden("04_partition")
    published = description["summary"][f"dirichlet_label.k{num_classes}.a0.1"]
    ours = figures("dirichlet_label", num_classes, 0.1, description)
    assert all(summary.counts_CK.sum() == 5000 for summary in ours)
    # The last examples go to clients that have no prior for them, so ours is a little less skewed than a partial deal.
    top_share = np.mean([summary.top_class_share_mean for summary in ours])
    assert published["top_class_share_mean"] - 0.12 < top_share < published["top_class_share_mean"]
