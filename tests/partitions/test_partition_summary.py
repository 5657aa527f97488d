"""Figures of a partition, checked on one small enough for a pocket calculator, and the shards themselves."""

import pickle

import numpy as np
import pytest

from fedsim.core.shards import Shards
from partitions import summarise

# Client 0: examples 0, 1, 2 (labels 0, 0, 1), the last held out. Client 1: examples 5, 3 (labels 1, 1).
SHARDS = Shards(np.array([0, 1, 2, 5, 3]), np.array([0, 3, 5]), np.array([2, 5]))
LABELS_N = np.array([0, 0, 1, 1, 0, 1])


def test_figures():
    summary = summarise(SHARDS, LABELS_N, ["bad", "good"])
    assert summary.counts_CK.tolist() == [[2, 1], [0, 2]]
    assert (summary.num_clients, summary.num_examples, summary.num_train, summary.num_holdout) == (2, 5, 4, 1)
    assert (summary.size_min, summary.size_median, summary.size_max) == (2, 2.5, 3)
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert summary.label_entropy_mean == pytest.approx(entropy / 2)
    assert summary.top_class_share_mean == pytest.approx((2 / 3 + 1) / 2)


def test_rows_for_printing():
    rows = dict(summarise(SHARDS, LABELS_N, ["bad", "good"]).rows())
    assert rows["examples"] == "5 (4 to train, 1 held out)"
    assert rows["examples by class"] == "bad 2, good 3"


def test_shards_are_views_of_flat_arrays_that_survive_pickling():
    again = pickle.loads(pickle.dumps(SHARDS))
    assert again.train(0).tolist() == [0, 1] and again.holdout(0).tolist() == [2]
    assert again.train(1).tolist() == [5, 3] and again.holdout(1).tolist() == []
    assert again.train_sizes.tolist() == [2, 2] and again.holdout_sizes.tolist() == [1, 0]
    assert np.shares_memory(SHARDS.train(0), SHARDS.indices_N)
    assert SHARDS.nbytes == 10 * 8


@pytest.mark.parametrize("client", [-1, 2])
def test_a_client_that_does_not_exist_has_no_examples(client):
    with pytest.raises(IndexError, match=f"client {client}"):
        SHARDS.train(client)
    with pytest.raises(IndexError, match=f"client {client}"):
        SHARDS.holdout(client)


@pytest.mark.parametrize(
    "offsets, stops",
    [([0, 3, 4], [2, 4]), ([1, 3, 5], [2, 5]), ([0, 3, 5], [4, 5]), ([0, 3, 5], [2, 2]), ([0, 3, 5], [2])],
)
def test_arrays_that_do_not_fit_are_refused(offsets, stops):
    with pytest.raises(ValueError, match=r"offsets_C1|train stop"):
        Shards(np.arange(5), np.array(offsets), np.array(stops))
