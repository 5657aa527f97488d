import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.tokens import TokenTable, cut, rows

some_texts = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=7), min_size=1, max_size=9)


def table_of(texts, typed):
    ids = np.concatenate([np.array(text, np.int32) for text in texts])
    return TokenTable(
        ids_Z=ids,
        offsets_N1=np.cumsum([0] + [len(text) for text in texts]),
        read_positions_N=np.array([len(text) - 1 for text in texts], np.int32),
        labels_N=np.arange(len(texts)),
        pad_id=0,
        type_ids_Z=(ids % 2).astype(np.uint8) if typed else None,
    )


@given(some_texts, st.booleans(), st.data())
def test_a_batch_holds_the_examples_in_order_padded_on_the_right(texts, typed, data):
    table = table_of(texts, typed)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5)))
    batch = table.batch(chosen)
    longest = max(len(texts[i]) for i in chosen)
    for row, i in enumerate(chosen):
        padding = [0] * (longest - len(texts[i]))
        assert batch.input_ids_BT[row].tolist() == texts[i] + padding
        assert batch.attention_mask_BT[row].tolist() == [1] * len(texts[i]) + padding
        assert batch.read_positions_B[row] == len(texts[i]) - 1
        assert batch.labels_B[row] == i
        if typed:
            assert batch.token_type_ids_BT[row].tolist() == [t % 2 for t in texts[i]] + padding
    assert (batch.token_type_ids_BT is None) == (not typed)
    assert len(table) == len(texts) and table.lengths_N.tolist() == [len(text) for text in texts]


@given(some_texts, st.booleans(), st.data())
def test_packed_tokens_are_the_examples_one_after_another(texts, typed, data):
    table = table_of(texts, typed)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5)))
    packed = table.pack(chosen)
    assert packed.ids_Z.tolist() == [token for i in chosen for token in texts[i]]
    assert packed.lengths_B.tolist() == [len(texts[i]) for i in chosen]
    assert packed.labels_B.tolist() == chosen.tolist() and len(packed) == len(chosen)
    assert packed.positions_Z.tolist() == [place for i in chosen for place in range(len(texts[i]))]
    assert packed.ids_Z[packed.starts_B].tolist() == [texts[i][0] for i in chosen]
    assert packed.ids_Z[packed.read_rows_B].tolist() == [texts[i][-1] for i in chosen]
    assert packed.read_rows_B.tolist() == (packed.starts_B + packed.lengths_B - 1).tolist()
    if typed:
        assert packed.types_Z.tolist() == (packed.ids_Z % 2).tolist()
    assert (packed.types_Z is None) == (not typed)
    integers = (packed.ids_Z, packed.lengths_B, packed.read_rows_B, packed.labels_B, packed.positions_Z)
    assert {array.dtype for array in integers} == {np.dtype(np.int64)}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=8))
def test_rows_are_the_places_of_all_tokens(runs):
    starts_B, lengths_B = np.array(runs, dtype=np.int64).T
    assert rows(starts_B, lengths_B).tolist() == [start + i for start, length in runs for i in range(length)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.none() | st.integers(1, 200))
def test_a_cut_keeps_the_order_and_the_limit(lengths, max_tokens):
    """Pieces hold ``max_tokens`` at most unless one example alone is longer; without such ones, one is too many at most."""
    pieces = cut(np.array(lengths), max_tokens)
    assert [i for piece in pieces for i in range(len(lengths))[piece]] == list(range(len(lengths)))
    assert all(piece.stop > piece.start for piece in pieces)
    if max_tokens is None:
        assert pieces == [slice(0, len(lengths))]
        return
    needed, filled = 1, 0
    for length in lengths:
        needed, filled = (
            (needed, filled + length) if filled + length <= max_tokens or not filled else (needed + 1, length)
        )
    assert needed <= len(pieces)
    assert len(pieces) <= needed + 1 or max(lengths) > max_tokens
    assert all(sum(lengths[piece]) <= max_tokens or piece.stop - piece.start == 1 for piece in pieces)


def test_pieces_of_a_cut_are_of_about_equal_size():
    assert cut(np.full(10, 7), 40) == [slice(0, 5), slice(5, 10)]
    assert cut(np.array([1, 1, 2, 3, 5, 8, 13, 21]), 30) == [slice(0, 6), slice(6, 7), slice(7, 8)]
    assert cut(np.arange(1, 9), 13) == [slice(0, 4), slice(4, 6), slice(6, 7), slice(7, 8)]
