import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.tokens import TokenTable


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=7), min_size=1, max_size=9), st.booleans(), st.data())
def test_a_batch_holds_the_examples_in_order_padded_on_the_right(texts, typed, data):
    ids = np.concatenate([np.array(text, np.int32) for text in texts])
    table = TokenTable(
        ids_Z=ids,
        offsets_N1=np.cumsum([0] + [len(text) for text in texts]),
        read_positions_N=np.array([len(text) - 1 for text in texts], np.int32),
        labels_N=np.arange(len(texts)),
        pad_id=0,
        type_ids_Z=(ids % 2).astype(np.uint8) if typed else None,
    )
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
