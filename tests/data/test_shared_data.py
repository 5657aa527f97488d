"""The loader on real files; skipped where they are not there."""

import numpy as np
import pytest

from fedsim.data.config import DataConfig
from fedsim.data.sources import load_dataset
from fedsim.data.tokenize import tokenize


@pytest.mark.parametrize(
    ("task", "train", "validation", "classes"),
    [("sst2", 20_000, 872, [428, 444]), ("rte", 2_490, 277, [146, 131]), ("mrpc", 3_668, 408, [129, 279])],
)
def test_real_files(shared_data, task, train, validation, classes):
    dataset = load_dataset(DataConfig(task=task, path=str(shared_data)), 0)
    assert (len(dataset.train), len(dataset.validation)) == (train, validation)
    assert np.bincount(dataset.validation.labels_N).tolist() == classes


def test_real_pairs_are_cut_and_keep_their_mask(shared_data, tokenizers):
    dataset = load_dataset(DataConfig(task="rte", path=str(shared_data), train_examples=300), 0)
    tokenizer = tokenizers["roberta"]
    table = tokenize(dataset.train, dataset.task, tokenizer, head_kind="verbalizer", causal=False, max_length=64)
    assert table.lengths_N.max() == 64
    masks = table.ids_Z[table.offsets_N1[:-1] + table.read_positions_N]
    assert (masks == tokenizer.mask_token_id).all()
