import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core import seeds

names = st.tuples(
    st.integers(0, 2**40), st.integers(-1, 10**6), st.integers(-1, 10**6), st.text(min_size=1, max_size=9)
)


@given(names)
def test_a_stream_is_a_function_of_its_name(name):
    assert seeds.stream(*name).integers(2**62) == seeds.stream(*name).integers(2**62)
    assert seeds.torch_seed(*name) == seeds.torch_seed(*name) < 2**63


@given(names, names)
def test_streams_of_different_names_differ(a, b):
    draws = [seeds.stream(*name).integers(2**62, size=2).tolist() for name in (a, b)]
    assert (draws[0] == draws[1]) == (a == b)


def test_global_random_states_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # noqa: NPY002
    seeds.stream(0, 1, 2, "shuffle").random(100)
    seeds.torch_seed(0, 1, 2, "dropout")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


def test_known_draw():
    # Results of old runs stay reproducible only while this number stays what it is.
    assert seeds.stream(0, 0, 0, "shuffle").integers(10**6) == 510157
