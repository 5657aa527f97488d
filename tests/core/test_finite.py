"""The check for finite numbers agrees with looking at every number, also where its sum of squares overflows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.finite import is_finite

NUMBERS = (0.0, -0.0, 1.0, -1e-40, 3e38, -3e38, np.nan, np.inf, -np.inf)


@given(
    numbers=st.lists(st.sampled_from(NUMBERS), max_size=12),
    dtype=st.sampled_from([np.float32, np.float64]),
    rows=st.integers(1, 3),
    step=st.sampled_from([1, 2, -1]),
)
def test_a_single_number_decides(numbers, dtype, rows, step):
    array = np.tile(np.array(numbers, dtype), (rows, 1))[:, ::step]
    assert is_finite(array) == all(np.isfinite(number) for number in array.ravel().tolist())


def test_a_number_and_whole_numbers_are_arrays_too():
    assert is_finite(np.array(2.0)) and is_finite(np.arange(3)) and not is_finite(np.array(np.nan))
