"""Properties of every partitioner, and what is special about each."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import PartitionError
from fedsim.core.uses import EVERY_KEY
from partitions import PARTITIONERS, partition
from partitions.base import apportion, dirichlet, holdout_size
from partitions.config import PartitionConfig
from partitions.dirichlet_label import _takers

ALPHAS = [1e-300, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e300]
KINDS = ["iid", "dirichlet_label", "dirichlet_class", "dirichlet_quantity", "label_shards", "by_column"]


def config(**keys):
    """Return a section in which keys of all kinds may stand, as these tests go over the kinds with the same values."""
    return PartitionConfig.model_validate(keys, context=EVERY_KEY)


def labels(num_examples, num_classes, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, num_examples)


def all_indices(shards):
    parts = [np.concatenate([shards.train(c), shards.holdout(c)]) for c in range(shards.num_clients)]
    return parts, np.sort(np.concatenate(parts))


def test_the_registry_holds_every_kind_of_the_schema():
    assert sorted(PARTITIONERS) == sorted(KINDS)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    num_examples=st.integers(1, 300),
    clients=st.integers(1, 40),
    num_classes=st.integers(1, 7),
    classes_per_client=st.integers(1, 4),
    alpha=st.sampled_from(ALPHAS),
    size_alpha=st.sampled_from(ALPHAS),
    seed=st.integers(0, 2**32),
)
def test_a_deal_uses_every_example_exactly_once(
    kind, num_examples, clients, num_classes, classes_per_client, alpha, size_alpha, seed
):
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, num_classes, num_examples)
    column = [f"author {i}" for i in rng.permutation(np.arange(num_examples) % clients)]
    partitioner = PARTITIONERS[kind](
        config(
            kind=kind,
            clients=clients,
            alpha=alpha,
            size_alpha=size_alpha,
            classes_per_client=classes_per_client,
            column="author",
        )
    )
    try:
        parts = partitioner.deal(labels_N, column, rng)
    except PartitionError as error:
        assert kind in ("label_shards", "by_column"), error
        assert "partition." in str(error)
        return
    assert len(parts) == clients
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    num_examples=st.integers(1, 400),
    clients=st.integers(1, 20),
    num_classes=st.integers(1, 5),
    alpha=st.sampled_from(ALPHAS),
    min_size=st.integers(1, 12),
    holdout_fraction=st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    seed=st.integers(0, 2**32),
)
def test_a_partition_keeps_its_promises_or_says_what_to_change(
    kind, num_examples, clients, num_classes, alpha, min_size, holdout_fraction, seed
):
    labels_N = labels(num_examples, num_classes, seed)
    column = (np.arange(num_examples) % clients).tolist()
    asked = config(
        kind=kind,
        clients=clients,
        alpha=alpha,
        classes_per_client=1,
        column="author",
        min_size=min_size,
        max_tries=5,
        holdout_fraction=holdout_fraction,
    )
    try:
        shards = partition(asked, labels_N, column, seed)
    except PartitionError as error:
        assert kind != "iid" or num_examples < clients * min_size
        assert "partition." in str(error) and "\n" not in str(error)
        return
    parts, joined = all_indices(shards)
    np.testing.assert_array_equal(joined, np.arange(num_examples))
    assert min(len(part) for part in parts) >= min_size
    assert shards.train_sizes.min() >= 1
    np.testing.assert_array_equal(shards.train_sizes + shards.holdout_sizes, [len(part) for part in parts])
    expected = [holdout_size(len(part), holdout_fraction) for part in parts]
    np.testing.assert_array_equal(shards.holdout_sizes, expected)
    for client in range(clients):
        assert (np.diff(shards.train(client)) > 0).all() and (np.diff(shards.holdout(client)) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides(kind):
    labels_N = labels(500, 4)
    column = (np.arange(500) % 30).tolist()
    asked = config(kind=kind, clients=20, column="author", alpha=5.0)
    first, again, other = (partition(asked, labels_N, column, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.indices_N, again.indices_N)
    np.testing.assert_array_equal(first.train_stops_C, again.train_stops_C)
    assert not np.array_equal(first.indices_N, other.indices_N)


def test_the_holdout_of_a_client_does_not_depend_on_the_other_clients():
    column = ["a"] * 40 + ["b"] * 30 + ["c"] * 20
    labels_N = np.zeros(90, dtype=int)
    asked = config(kind="by_column", clients=3, column="author", holdout_fraction=0.3)
    longer = partition(asked, np.zeros(120, dtype=int), column + ["c"] * 30, 7)
    shorter = partition(asked, labels_N, column, 7)
    for client in (0, 1):
        np.testing.assert_array_equal(shorter.holdout(client), longer.holdout(client))
    assert len(shorter.holdout(0)) == 12


@pytest.mark.parametrize(
    "size, fraction, held", [(1, 0.9, 0), (10, 0.1, 1), (9, 0.1, 0), (100, 0.29, 29), (2, 0.99, 1), (5, 1 - 1e-12, 4)]
)
def test_the_holdout_is_rounded_down_and_never_takes_the_last_example(size, fraction, held):
    assert holdout_size(size, fraction) == held


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["iid", "dirichlet_label", "dirichlet_class", "dirichlet_quantity", "label_shards"])
def test_more_clients_than_examples(kind):
    with pytest.raises(PartitionError, match=r"needs at least 100 training examples, but there are 60.*clients=60"):
        partition(config(kind=kind, clients=100), labels(60, 2), None, 0)


def test_a_minimum_size_above_the_whole_dataset():
    with pytest.raises(
        PartitionError, match=r"needs at least 9 training examples, but there are 8; lower partition.min"
    ):
        partition(config(kind="iid", clients=1, min_size=9), labels(8, 2), None, 0)


def test_retries_end_in_an_error_that_says_what_to_change():
    asked = config(kind="dirichlet_quantity", clients=50, alpha=1e-3, max_tries=4)
    with pytest.raises(PartitionError, match=r"none of 4 draws.*min_size=1.*raise partition.alpha"):
        partition(asked, labels(1000, 2), None, 0)


def test_a_retry_finds_a_partition_that_the_first_draw_missed():
    labels_N = labels(400, 2)
    asked = {"kind": "dirichlet_class", "clients": 10, "alpha": 2.0, "min_size": 20}
    with pytest.raises(PartitionError):
        partition(config(**asked, max_tries=1), labels_N, None, 1)
    shards = partition(config(**asked, max_tries=500), labels_N, None, 1)
    assert shards.sizes.min() >= 20


# -- Dirichlet kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
def test_dirichlet_draws_are_distributions_for_every_alpha(alpha):
    shares = dirichlet(np.random.default_rng(0), alpha, (200, 6))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 6, atol=0.1)
    exact_variance = (1 / 6) * (5 / 6) / (6 * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=0).mean(), exact_variance, rtol=0.1, atol=1e-9)


def test_apportion_sums_up_and_stays_within_one():
    rng = np.random.default_rng(0)
    for total in (0, 1, 7, 1000):
        shares = rng.dirichlet(np.ones(13))
        sizes = apportion(shares, total)
        assert sizes.sum() == total and (np.abs(sizes - shares * total) < 1).all()


def test_dirichlet_label_deals_a_large_dataset_quickly():
    labels_N = labels(20_000, 6)
    started = time.perf_counter()
    shards = partition(config(clients=1000, alpha=0.1), labels_N, None, 0)
    assert time.perf_counter() - started < 2.0
    assert shards.num_clients == 1000


def test_dirichlet_label_draws_a_used_up_class_again_by_the_client_s_own_prior():
    """One huge and one tiny class: all clients get the huge class, whatever their priors."""
    labels_N = np.array([0] * 990 + [1] * 10)
    shards = partition(config(clients=50, alpha=1e-3), labels_N, None, 0)
    counts_CK = shards.label_counts(labels_N, 2)
    assert counts_CK.sum(axis=0).tolist() == [990, 10]
    assert (counts_CK[:, 0] > 0).sum() >= 40


def published_deal(labels_N, clients, alpha, rng):
    """The published procedure, literally: draw a client until one has room, draw a class until one is left."""
    room = np.floor(rng.dirichlet([5.0] * clients) * len(labels_N)).astype(int)
    room[0] += len(labels_N) - room.sum()
    stock = np.bincount(labels_N)
    priors = np.cumsum(rng.dirichlet([alpha] * len(stock), clients), axis=1)
    counts_CK = np.zeros((clients, len(stock)), dtype=int)
    while room.any():
        client = rng.integers(clients)
        if room[client] == 0:
            continue
        label = np.argmax(rng.random() <= priors[client])
        while stock[label] == 0:
            label = np.argmax(rng.random() <= priors[client])
        room[client] -= 1
        stock[label] -= 1
        counts_CK[client, label] += 1
    return counts_CK


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_dirichlet_label_agrees_with_the_published_procedure(alpha):
    labels_N = np.repeat(np.arange(4), [300, 200, 100, 150])

    def figures(tables):
        shares = np.concatenate([table / table.sum(axis=1, keepdims=True) for table in tables])
        return np.sort(shares, axis=1).mean(axis=0)

    ours = [
        partition(config(clients=25, alpha=alpha), labels_N, None, seed).label_counts(labels_N, 4) for seed in range(40)
    ]
    theirs = [published_deal(labels_N, 25, alpha, np.random.default_rng(seed)) for seed in range(20)]
    np.testing.assert_allclose(figures(ours), figures(theirs), atol=0.03)


def test_the_next_client_of_a_deal_is_any_with_room_whatever_its_room():
    takers = np.array([list(_takers(np.array([1, 9, 0, 2]), np.random.default_rng(seed))) for seed in range(3000)])
    first = np.bincount(takers[:, 0], minlength=4) / 3000
    np.testing.assert_allclose(first, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.03)
    after_the_small_one = takers[takers[:, 0] == 0, 1]
    np.testing.assert_allclose(np.bincount(after_the_small_one) / len(after_the_small_one), [0, 0.5, 0, 0.5], atol=0.05)
    assert all(np.bincount(row, minlength=4).tolist() == [1, 9, 0, 2] for row in takers)


def test_dirichlet_label_follows_alpha():
    labels_N = np.repeat(np.arange(4), 500)
    shares = []
    for alpha in (0.05, 1.0, 100.0):
        shards = partition(config(clients=40, alpha=alpha), labels_N, None, 0)
        counts_CK = shards.label_counts(labels_N, 4)
        shares.append((counts_CK.max(axis=1) / counts_CK.sum(axis=1)).mean())
    assert shares[0] > 0.75 > shares[1] > 0.45 > shares[2]


def test_dirichlet_label_sizes_follow_size_alpha_and_not_alpha():
    labels_N = np.repeat(np.arange(4), 500)
    even = partition(config(clients=40, alpha=0.1, size_alpha=1e4), labels_N, None, 0)
    uneven = partition(config(clients=40, alpha=1e4, size_alpha=2.0), labels_N, None, 0)
    assert even.sizes.std() < 2 < 20 < uneven.sizes.std()


def test_iid_sizes_differ_by_one_at_most():
    shards = partition(config(kind="iid", clients=7), labels(100, 3), None, 0)
    assert shards.sizes.max() - shards.sizes.min() == 1


# -- label shards ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    clients=st.integers(1, 30),
    classes_per_client=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_label_shards_gives_every_client_exactly_k_classes(counts, clients, classes_per_client, seed):
    labels_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    asked = config(kind="label_shards", clients=clients, classes_per_client=classes_per_client)
    possible = (
        classes_per_client <= len(counts) <= clients * classes_per_client
        and sum(min(count, clients) for count in counts) >= clients * classes_per_client
    )
    if not possible:
        with pytest.raises(PartitionError, match="partition"):
            partition(asked, labels_N, None, seed)
        return
    shards = partition(asked, labels_N, None, seed)
    counts_CK = shards.label_counts(labels_N, len(counts))
    assert ((counts_CK > 0).sum(axis=1) == classes_per_client).all()
    assert counts_CK.sum(axis=0).tolist() == counts


def test_label_shards_pairs_classes_in_many_ways():
    labels_N = np.repeat(np.arange(10), 100)
    shards = partition(config(kind="label_shards", clients=100, classes_per_client=2), labels_N, None, 0)
    pairs = {tuple(np.flatnonzero(row)) for row in shards.label_counts(labels_N, 10)}
    assert len(pairs) > 25
    assert shards.sizes.min() == shards.sizes.max() == 10


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"classes_per_client": 3}, "have only 2 classes; set it to 2 or less"),
        ({"classes_per_client": 1, "clients": 1}, "cannot hold all 2 classes"),
    ],
)
def test_label_shards_that_cannot_be(keys, sentence):
    with pytest.raises(PartitionError, match=sentence):
        partition(config(kind="label_shards", **{"clients": 4, **keys}), labels(40, 2), None, 0)


# -- natural clients -------------------------------------------------------------------------------------------------


def test_by_column_makes_values_clients_in_ascending_order():
    column = ["zoe", "ann", "bob", "ann", "zoe", "ann"]
    shards = partition(
        config(kind="by_column", clients=3, column="author", holdout_fraction=0.0), np.zeros(6, dtype=int), column, 0
    )
    assert [shards.train(c).tolist() for c in range(3)] == [[1, 3, 5], [2], [0, 4]]


def test_by_column_draws_among_values_that_are_large_enough():
    column = [f"a{i // 5}" for i in range(100)] + ["small"]
    asked = config(kind="by_column", clients=6, column="author", min_size=2)
    drawn = [partition(asked, np.zeros(101, dtype=int), column, seed) for seed in range(30)]
    assert all(100 not in shards.indices_N and (shards.sizes == 5).all() for shards in drawn)
    assert len({int(i) // 5 for shards in drawn for i in shards.indices_N}) == 20


@pytest.mark.parametrize(
    "keys, column, sentence",
    [
        ({"column": None}, ["a", "b", "c", "d"], "needs partition.column"),
        ({}, None, "partition.column='author' is not a column of the training data"),
        ({}, ["a", "b", "a", "b"], r"is 3 but column 'author' has only 2 values; set partition.clients=2 or less"),
        (
            {"min_size": 2, "clients": 2},
            ["a", "b", "a", "c"],
            "only 1 value with 2 or more examples; set partition.clients=1 or less",
        ),
        (
            {"min_size": 3, "clients": 1},
            ["a", "b", "a", "b"],
            "only 0 values with 3 or more examples; lower partition.min",
        ),
        ({}, ["a", None, "b", "c"], r"no value in training example 1"),
        ({}, ["a", "c", float("nan"), "c"], r"no value in training example 2"),
        ({}, ["a", "c", "b", ""], r"no value in training example 3"),
        ({}, ["a", "c", ["b"], "c"], r"holds a list in training example 2.*, which cannot name a client"),
    ],
)
def test_by_column_errors(keys, column, sentence):
    asked = config(**{"kind": "by_column", "clients": 3, "column": "author", **keys})
    with pytest.raises(PartitionError, match=sentence):
        partition(asked, np.zeros(4, dtype=int), column, 0)


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 column values do not match 4 labels"):
        partition(config(kind="by_column", clients=1, column="a"), np.zeros(4, dtype=int), [1, 2, 3], 0)
