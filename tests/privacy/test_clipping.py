"""Clipping: the sum of what clients send never moves by more than the stated sensitivity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clients.sending.clipping import privatised
from clients.sending.compressing import Sent, compressed, stream_of
from fedsim import Config
from fedsim.core.clipping import Clipping, change_norm, clipped
from fedsim.core.layout import LayerArrays, VectorLayout
from fedsim.core.method import ClientRound, Correction

FORMATS = st.sampled_from([np.float32, np.float64])
SCALES = st.sampled_from([1e-30, 1e-8, 1e-3, 1.0, 1e4, 1e12])


@st.composite
def visits(draw, clients=1):
    """A start, what some clients trained from it, and a norm; sizes of start, change and norm are far apart."""
    kind, size = draw(FORMATS), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    start_F = (rng.standard_normal(size) * draw(SCALES)).astype(kind)
    trained = [(start_F + rng.standard_normal(size) * draw(SCALES)).astype(kind) for _ in range(clients)]
    return start_F, trained, float(draw(SCALES) * rng.uniform(0.5, 2.0))


def length(start_F, sent_F):
    """The norm of a change, in 80 bits where the machine has them."""
    return float(np.sqrt(np.sum((sent_F.astype(np.longdouble) - start_F) ** 2)))


@given(visits())
def test_a_change_is_never_longer_than_the_norm_after_rounding(visit):
    start_F, (vector_F,), norm = visit
    sent_F = clipped(start_F, vector_F, norm)
    assert sent_F.dtype == vector_F.dtype and length(start_F, sent_F) <= norm
    # No entry turns around, nor grows.
    change_F, sent_change_F = (v.astype(np.longdouble) - start_F for v in (vector_F, sent_F))
    assert (np.abs(sent_change_F) <= np.abs(change_F)).all() and (change_F * sent_change_F >= 0).all()
    if length(start_F, vector_F) <= norm * 0.999:
        assert sent_F is vector_F


@given(visits(clients=5), st.integers(0, 4))
def test_the_sum_moves_by_the_norm_if_a_client_goes_and_by_twice_the_norm_if_one_is_replaced(visit, place):
    start_F, trained, norm = visit
    *cohort, other = [clipped(start_F, vector_F, norm).astype(np.longdouble) - start_F for vector_F in trained]
    whole = sum(cohort)
    less = sum(change for i, change in enumerate(cohort) if i != place % 4)
    replaced = less + other
    slack = norm * 1e-12  # of these sums' own rounding
    assert np.sqrt(np.sum((whole - less) ** 2)) <= norm + slack
    assert np.sqrt(np.sum((whole - replaced) ** 2)) <= 2 * norm + slack


def test_a_long_change_keeps_its_direction_and_nearly_all_of_the_norm():
    rng = np.random.default_rng(0)
    start_F, vector_F = (rng.standard_normal(1000).astype(np.float32) for _ in range(2))
    sent_F = clipped(start_F, vector_F, 0.25)
    ratio = (sent_F - start_F) @ (vector_F - start_F) / change_norm(start_F, vector_F) / 0.25
    assert ratio == pytest.approx(1.0, abs=1e-4)


@given(arrays(np.float32, 3, elements=st.sampled_from([np.nan, np.inf, 1.0])))
def test_what_is_not_finite_is_left_for_whoever_refuses_it(vector_F):
    sent_F = clipped(np.zeros(3, np.float32), vector_F, 0.5)
    assert np.isfinite(sent_F).all() == np.isfinite(vector_F).all()


# -- the stage on the device ----------------------------------------------------------------------------------------------

SIZE = 4000
LAYOUT = VectorLayout(LayerArrays(2, (("a", (149,)),)), (0, 1), (("bias", (2,)),))
"""Of 300 entries."""


def sent(clipping, round=0, client=3, seed=0):
    rng = np.random.default_rng(1)
    start_F, vector_F = (rng.standard_normal(SIZE).astype(np.float32) for _ in range(2))
    own = ClientRound(None, 1, 1, start_F, vector_F=vector_F)
    return start_F, vector_F, privatised(clipping, seed, round, client, Sent(own))


def test_a_change_is_clipped_and_its_length_told():
    start_F, vector_F, result = sent(Clipping(1.5))
    assert 1.49 < length(start_F, result.client.trained_F) <= 1.5
    assert result.change_norm == pytest.approx(length(start_F, vector_F)) and result.bit == 0.0
    assert sent(Clipping(1e3))[2].bit == 1.0
    unchanged = sent(None)[2]
    assert np.array_equal(unchanged.client.trained_F, vector_F) and unchanged.change_norm is None


def test_a_share_of_the_noise_is_drawn_for_each_seed_round_and_client():
    quiet = sent(Clipping(1.5))[2].client.trained_F
    shares = {
        key: sent(Clipping(1.5, 0.5, 2.0), **dict(zip(("round", "client", "seed"), key, strict=True)))[2]
        for key in ((0, 3, 0), (1, 3, 0), (0, 4, 0), (0, 3, 1))
    }
    drawn = [result.client.trained_F - quiet for result in shares.values()]
    for noise in drawn:
        assert np.std(noise) == pytest.approx(0.5, rel=0.05) and abs(np.mean(noise)) < 0.05
    correlations = np.corrcoef(drawn) - np.eye(4)
    assert np.abs(correlations).max() < 0.1 and len({result.bit for result in shares.values()}) == 4
    again = sent(Clipping(1.5, 0.5, 2.0), 0, 3, 0)[2]
    assert np.array_equal(again.client.trained_F - quiet, drawn[0])


@given(st.sampled_from(["int8", "int4", "sign", "top_k", "float16"]), st.floats(0.01, 10.0), st.integers(0, 5))
def test_what_a_compressed_message_reads_as_is_clipped_too(kind, scale, seed):
    """Stochastic rounding and signs may make a change longer: the clipping norm holds for what the server sums."""
    rng = np.random.default_rng(seed)
    start_F = rng.standard_normal(300).astype(np.float32)
    vector_F = (start_F + scale * rng.standard_normal(300)).astype(np.float32)
    own = ClientRound(None, 1, 1, start_F, vector_F=vector_F)
    compression = {"up": {"kind": kind}, "error_feedback": False}
    link = Config(server={"kind": "fedavg"}, compression=compression).uplink
    read = compressed(link, (Correction(),), own, LAYOUT, stream_of(0, 0, 1))
    result = privatised(Clipping(0.5), 0, 0, 1, read)
    assert length(start_F, result.client.trained_F) <= 0.5
    assert result.change_norm == pytest.approx(length(start_F, read.client.trained_F))
