"""Next tokens: the likely ones are those of transformers, and draws follow their probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from clients.backbone.choosing import choose, likely
from fedsim.core.decoding import Decoding


def scores(seed: int, rows: int = 3, size: int = 50) -> torch.Tensor:
    return 3.0 * torch.randn((rows, size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    seed=st.integers(0, 99),
    temperature=st.floats(0.1, 3.0),
    top_k=st.one_of(st.none(), st.integers(1, 60)),
    top_p=st.floats(0.01, 1.0),
)
def test_the_likely_tokens_are_those_of_transformers(seed, temperature, top_k, top_p):
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    expected = processors(torch.zeros((3, 1), dtype=torch.int64), scores(seed))
    found = likely(scores(seed), Decoding(1, (), True, temperature, top_k, top_p))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("top_k", [None, 5])
def test_draws_follow_the_probabilities(top_k):
    decoding, count = Decoding(1, (), True, 1.2, top_k), 4000
    row = scores(1, rows=1, size=12)
    uniform = (np.arange(count) + 0.5) / count
    drawn = choose(row.expand(count, -1), decoding, uniform)
    share = np.bincount(drawn, minlength=12) / count
    chance = likely(row.float().double(), decoding).softmax(1)[0].numpy()
    assert np.abs(share - chance).max() <= 1 / count
    assert set(np.flatnonzero(share)) == set(np.flatnonzero(chance > 1 / count))


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_draws_at_the_ends_are_tokens_with_a_chance(uniform):
    row = torch.tensor([[0.0, 5.0, 4.0, -1.0]])
    (token,) = choose(row, Decoding(1, (), True, 1.0, 2), np.array([uniform]))
    assert token == (1 if uniform == 0.0 else 2)


def test_a_draw_from_scores_that_are_not_finite_is_refused():
    row = torch.tensor([[0.0, float("nan")]])
    with pytest.raises(ValueError, match="scores of next tokens are not finite"):
        choose(row, Decoding(1, (), True), np.array([0.5]))


def test_the_most_likely_token_is_the_first_of_equal_ones():
    assert choose(torch.tensor([[1.0, 2.0, 2.0], [3.0, 0.0, 3.0]]), Decoding(1, ()), None).tolist() == [1, 0]
