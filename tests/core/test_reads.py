"""Reads of responses: each of their tokens is predicted by the row before it, in its own example."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.reads import of_learned, of_responses
from fedsim.core.tokens import TokenTable

examples = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=9)
"""Tokens of a prompt and of a response."""


def table_of(pairs):
    prompts_N, responses_N = np.array(pairs).T
    lengths_N = prompts_N + responses_N
    return TokenTable(
        ids_Z=np.random.default_rng(0).integers(3, 50, lengths_N.sum()).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths_N)]),
        read_positions_N=(prompts_N - 1).astype(np.int32),
        labels_N=np.zeros(len(pairs), np.int64),
        pad_id=0,
        response_starts_N=prompts_N.astype(np.int32),
    )


@given(examples, st.data())
def test_each_token_of_a_response_is_predicted_by_the_one_before_it(pairs, data):
    table = table_of(pairs)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=12)))
    packed = table.pack(chosen)
    reads = packed.reads
    wanted = [
        (example, int(table.offsets_N1[i]) + t) for example, i in enumerate(chosen) for t in range(*_response(pairs[i]))
    ]
    assert reads.groups_R.tolist() == [example for example, _ in wanted] and reads.num_groups == len(chosen)
    assert reads.targets_R.tolist() == [int(table.ids_Z[token]) for _, token in wanted]
    rows_R = reads.rows_U[reads.read_R]
    assert packed.ids_Z[rows_R + 1].tolist() == reads.targets_R.tolist()
    assert (np.repeat(np.arange(len(chosen)), packed.lengths_B)[rows_R] == reads.groups_R).all()
    assert (np.diff(reads.rows_U) > 0).all()
    assert (
        packed.ids_Z[packed.read_rows_B + 1] == reads.targets_R[np.unique(reads.groups_R, return_index=True)[1]]
    ).all()
    assert table.responses_N.tolist() == [response for _, response in pairs]
    for array in (reads.rows_U, reads.read_R, reads.targets_R, reads.groups_R):
        assert array.dtype == np.int64


@given(examples)
def test_a_padded_batch_has_the_reads_of_the_packed_one(pairs):
    table, order = table_of(pairs), np.arange(len(pairs))[::-1]
    batch, packed = table.batch(order), table.pack(order)
    for name in ("rows_U", "read_R", "targets_R", "groups_R"):
        np.testing.assert_array_equal(getattr(batch.reads, name), getattr(packed.reads, name))


def test_without_responses_nothing_but_the_read_position_is_read():
    table = table_of([(2, 1), (3, 2)])
    plain = TokenTable(table.ids_Z, table.offsets_N1, table.read_positions_N, table.labels_N, 0)
    assert plain.pack(np.arange(2)).reads is None and plain.batch(np.arange(2)).reads is None
    assert plain.responses_N.tolist() == [1, 1]
    assert table.nbytes == plain.nbytes + 2 * 4


@pytest.mark.parametrize("start", [0, 3])
def test_a_response_without_a_token_or_without_one_before_it_is_refused(start):
    with pytest.raises(ValueError, match="a response needs a token, and a token before it"):
        of_responses(np.arange(5), np.array([2, 3]), np.array([1, start]))


def _response(pair):
    prompt, response = pair
    return prompt, prompt + response


@pytest.mark.parametrize("learned", [[0, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 1, 1, 0, 1]])
def test_an_example_without_a_learned_token_or_with_nothing_before_one_is_refused(learned):
    with pytest.raises(ValueError, match="an example needs a token that is learned, and a token before it"):
        of_learned(np.arange(5), np.array([2, 3]), np.array(learned, bool))


@given(examples)
def test_the_last_tokens_marked_as_learned_are_a_response(pairs):
    table = table_of(pairs)
    learned_Z = np.concatenate([np.repeat([0, 1], pair) for pair in pairs]).astype(np.uint8)
    marked, order = replace(table, learned_Z=learned_Z), np.arange(len(pairs))[::-1]
    ours, theirs = marked.pack(order).reads, table.pack(order).reads
    for name in ("rows_U", "read_R", "targets_R", "groups_R"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert marked.responses_N.tolist() == table.responses_N.tolist()
    assert marked.nbytes == table.nbytes + len(learned_Z)
