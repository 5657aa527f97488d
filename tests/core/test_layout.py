import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.layout import PromptGeometry, VectorLayout

HEAD = (("head.weight", (3, 4)), ("head.bias", (3,)))


def layouts():
    geometry = st.builds(PromptGeometry, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    return st.tuples(geometry, st.sampled_from([(), HEAD])).map(lambda pair: VectorLayout.full(*pair))


@given(layouts(), st.data())
def test_split_and_join_are_inverse_and_parts_cover_the_whole(full, data):
    layers = data.draw(st.sets(st.integers(0, full.geometry.num_layers - 1)))
    vector = np.arange(full.size, dtype=np.float32)
    prompt, head = full.split(vector)
    assert prompt.shape == full.tuned_shape
    np.testing.assert_array_equal(full.join(prompt, head), vector)

    exchanged, local = full.exchanged(layers), full.local(layers)
    positions = np.concatenate([full.positions(exchanged), full.positions(local)])
    np.testing.assert_array_equal(np.sort(positions), np.arange(full.size))
    part, part_head = exchanged.split(vector[full.positions(exchanged)])
    np.testing.assert_array_equal(part, prompt[list(exchanged.layers)])
    assert set(part_head) == set(head)


def test_split_gives_views_of_torch_vectors_that_carry_gradients():
    layout = VectorLayout(PromptGeometry(4, 2, 3, 5), (1, 3), HEAD)
    vector = torch.randn(layout.size, requires_grad=True)
    prompt, head = layout.split(vector)
    (prompt[1].sum() + head["head.bias"].sum()).backward()
    gradient_prompt, gradient_head = layout.split(vector.grad)
    assert gradient_prompt[0].abs().sum() == 0
    assert (gradient_prompt[1] == 1).all()
    assert (gradient_head["head.bias"] == 1).all()
    assert gradient_head["head.weight"].abs().sum() == 0


@given(layouts(), st.integers(1, 4), st.data())
def test_rows_are_split_as_each_would_be_alone(full, clients, data):
    layout = full.exchanged(data.draw(st.sets(st.integers(0, full.geometry.num_layers - 1))))
    vector_CF = np.arange(clients * layout.size, dtype=np.float32).reshape(clients, -1)
    prompt_CLKHPD, head_C = layout.split_rows(vector_CF)
    assert prompt_CLKHPD.shape == (clients, *layout.tuned_shape) and list(head_C) == [n for n, _ in HEAD if head_C]
    for client in range(clients):
        prompt, head = layout.split(vector_CF[client])
        np.testing.assert_array_equal(prompt_CLKHPD[client], prompt)
        for name, array in head.items():
            np.testing.assert_array_equal(head_C[name][client], array)
    assert all(np.shares_memory(part, vector_CF) for part in (prompt_CLKHPD, *head_C.values()) if part.size)


@pytest.mark.parametrize("layers", [(1, 0), (0, 0), (0, 4), (-1,)])
def test_layers_must_ascend_and_exist(layers):
    with pytest.raises(ValueError, match="layers"):
        VectorLayout(PromptGeometry(4, 1, 1, 1), layers)


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected a vector of shape"):
        VectorLayout(PromptGeometry(2, 1, 1, 1), (0, 1)).split(np.zeros(3))
    with pytest.raises(ValueError, match="expected vectors of length 4, got 3"):
        VectorLayout(PromptGeometry(2, 1, 1, 1), (0, 1)).split_rows(np.zeros((5, 3)))


def test_positions_of_a_layout_that_is_no_part_are_refused():
    geometry = PromptGeometry(3, 1, 1, 1)
    with pytest.raises(ValueError, match="not a part"):
        VectorLayout(geometry, (0,)).positions(VectorLayout(geometry, (1,)))
