"""Buckets of packed examples: how they are cut, and how their padding is counted."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.tuners.packed_prefix import _MAX_PADDING_SLOTS, PackedPrefix, _cut


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 200))
def test_buckets_are_runs_with_little_padding_and_as_few_as_that_allows(lengths, most):
    """Every bucket holds at most ``most`` slots of padding, and none could take the example before it as well."""
    lengths_B = np.array(lengths)
    buckets = _cut(lengths_B, most)
    assert [i for bucket in buckets for i in range(len(lengths))[bucket.examples]] == list(range(len(lengths)))
    slot = 0
    for bucket in buckets:
        own = lengths_B[bucket.examples]
        assert (bucket.num_examples, bucket.num_tokens) == (len(own), own.max())
        assert bucket.slots == slice(slot, slot + len(own) * own.max())
        assert bucket.padded == (len(set(own.tolist())) > 1)
        assert _padding(own) <= most
        slot = bucket.slots.stop
    for earlier, later in pairwise(buckets):
        assert _padding(lengths_B[earlier.examples.stop - 1 : later.examples.stop]) > most


def _padding(lengths: np.ndarray) -> int:
    return int(len(lengths) * lengths.max() - lengths.sum())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.booleans())
def test_slots_are_counted_for_each_example(lengths, ascending):
    lengths_B = np.array(sorted(lengths) if ascending else lengths)
    prefix = PackedPrefix(torch.empty(1, 0, 2, 1, 0, 1), (), None, lengths_B, is_causal=False)
    assert len(prefix.slots_B) == len(lengths_B) and (prefix.slots_B >= lengths_B).all()
    assert prefix.slots_B.dtype == np.int64
    buckets = _cut(lengths_B, _MAX_PADDING_SLOTS["cpu"])
    assert prefix.slots_B.sum() - lengths_B.sum() == sum(_padding(lengths_B[bucket.examples]) for bucket in buckets)


def test_examples_of_equal_length_have_no_padding():
    assert _cut(np.full(50, 9), 0) == _cut(np.full(50, 9), 10**6)
    assert (
        PackedPrefix(torch.empty(1, 0, 2, 1, 0, 1), (), None, np.full(50, 9), is_causal=True).slots_B.tolist()
        == [9] * 50
    )
