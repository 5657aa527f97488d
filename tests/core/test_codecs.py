"""Codecs: what is read of what was written, how long it is, and what of it is right in the mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.compression import indices
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import CODECS
from fedsim.core.compression.config import CodecConfig
from fedsim.core.compression.message import Packer
from fedsim.core.compression.sparse import RandomK

FEW = settings(max_examples=40, deadline=None)
HEADER = 10


def packer(kind, zstd=False, **keys):
    return Packer(CodecConfig(kind=kind, **keys).codec(), kind, zstd)


def there_and_back(made, array_F, blocks, seed=0):
    """Return what is read of an array, and the length of its message."""
    message = made.pack(array_F, blocks, np.random.default_rng(seed))
    read_F = made.unpack(message, blocks)
    assert read_F.dtype == array_F.dtype and read_F.shape == array_F.shape
    assert len(message) <= made.most_bytes(blocks, array_F.itemsize)
    return read_F, len(message)


def count_of(share, size):
    return min(size, int(np.ceil(share * size)))


def within(kind, array_F, read_F, blocks):
    """Return whether an array is read as its codec says."""
    if kind == "none":
        return np.array_equal(array_F, read_F)
    if kind in ("float16", "bfloat16"):
        relative = 2.0**-11 if kind == "float16" else 2.0**-8
        return (np.abs(array_F - read_F) <= 1.001 * relative * np.abs(array_F) + 2.0**-25).all()
    if kind in ("top_k", "random_k"):
        sent = read_F != 0.0
        least = np.abs(array_F[sent]).min(initial=np.inf)
        largest_first = kind == "random_k" or (np.abs(array_F[~sent]) <= least).all()
        return np.array_equal(array_F[sent], read_F[sent]) and largest_first
    every = blocks.every(256)
    if kind == "sign":
        mean_F = every.spread(every.means(np.abs(array_F)))
        return np.allclose(read_F, np.where(array_F >= 0.0, mean_F, -mean_F), rtol=1e-6, atol=1e-30)
    step_F = every.spread(every.largest(np.abs(array_F))) / {"int8": 127, "int4": 7}[kind]
    return (np.abs(array_F - read_F) <= 1.00001 * step_F).all()


@pytest.mark.parametrize("kind", CODECS)
@FEW
@given(
    size=st.sampled_from([0, 1, 2, 3, 7, 255, 256, 257, 1001]) | st.integers(0, 600),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([np.float32, np.float64]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    zstd=st.booleans(),
)
def test_what_is_read_is_what_was_written_within_the_codecs_bounds(kind, size, seed, dtype, scale, zstd):
    array_F = (scale * np.random.default_rng(seed).standard_normal(size)).astype(dtype)
    array_F[: size // 5] = 0.0  # a block of zeros among them
    blocks = Blocks.of_sizes([size // 3, size - size // 3])
    made = packer(kind, zstd)
    if kind == "random_k":
        made = Packer(RandomK(0.1, scaled=False), kind, zstd)
    read_F, _ = there_and_back(made, array_F, blocks, seed)
    assert within(kind, array_F, read_F, blocks)
    assert np.array_equal(read_F, there_and_back(made, array_F, blocks, seed)[0])


def test_changes_that_a_codec_makes_too_large_for_their_format_become_infinite_without_a_warning():
    """A client with such a change is one whose message cannot be sent, as with float16."""
    array_F = np.full(100, 3e38, np.float32)
    with np.errstate(all="raise"):
        read_F, _ = there_and_back(packer("random_k", share=0.1), array_F, Blocks.of_sizes([100]))
    assert np.isinf(read_F).sum() == 10 and not read_F[np.isfinite(read_F)].any()


CLOSE, SPARSE = np.arange(1000) < 500, np.arange(1000) % 10 == 0
SIZES = {
    # 1,000 float32 in layers of 600 and 400
    "none": ({}, 4000),
    "float16": ({}, 2000),
    "bfloat16": ({}, 2000),
    "int8": ({}, 4 * 4 + 1000),
    "int8 ": ({"block": "layer"}, 2 * 4 + 1000),
    "int4": ({}, 4 * 4 + 500),
    "int4 ": ({"block": 999}, 2 * 4 + 500),
    "sign": ({"block": 100}, 10 * 4 + 125),
    "random_k": ({"share": 0.0995}, 8 + 100 * 4),
    "top_k": ({"share": 0.1}, 100 * 4 + 1 + 100),  # every tenth: a byte a gap
    "top_k ": ({"share": 0.5}, 500 * 4 + 1 + 125),  # every second: a bitmap
}


@pytest.mark.parametrize("name", SIZES)
def test_messages_are_as_long_as_counted_by_hand(name):
    keys, payload = SIZES[name]
    kind, blocks = name.strip(), Blocks.of_sizes([600, 0, 400])
    array_F = np.where(np.arange(1000) % (2 if keys.get("share") == 0.5 else 10) == 0, 5.0, 0.1).astype(np.float32)
    assert there_and_back(packer(kind, **keys), array_F, blocks)[1] == HEADER + payload


def test_an_odd_vector_of_int4_takes_half_a_byte_more():
    for size in (1, 7, 8):
        blocks = Blocks.of_sizes([size])
        assert there_and_back(packer("int4"), np.ones(size, np.float32), blocks)[1] == HEADER + 4 + (size + 1) // 2


@pytest.mark.parametrize("kind", ["int8", "int4", "random_k"])
def test_unbiased_codecs_are_right_in_the_mean_with_the_error_that_theory_gives(kind):
    rng, times, size = np.random.default_rng(5), 3000, 40
    array_F = rng.standard_normal(size)
    blocks, made = Blocks.of_sizes([size]), packer(kind, **({"share": 0.25} if kind == "random_k" else {}))
    reads = np.stack([made.unpack(made.pack(array_F, blocks, rng), blocks) for _ in range(times)])
    if kind == "random_k":
        variance_F = array_F**2 * (1 / 0.25 - 1)
    else:
        step = np.abs(array_F).max() / {"int8": 127, "int4": 7}[kind]
        above_F = array_F / step - np.floor(array_F / step)
        variance_F = step**2 * above_F * (1 - above_F)
    error_F = reads.mean(axis=0) - array_F
    assert (np.abs(error_F) <= 5 * np.sqrt(variance_F / times) + 1e-6 * np.abs(array_F)).all()
    squares = ((reads - array_F) ** 2).sum(axis=1)
    assert abs(squares.mean() - variance_F.sum()) <= 5 * squares.std() / np.sqrt(times) + 1e-6 * variance_F.sum()


@FEW
@given(size=st.integers(1, 40_000), share=st.sampled_from([0.0, 0.0001, 0.01, 0.2, 0.9]), seed=st.integers(0, 99))
def test_positions_are_read_as_written_and_no_longer_than_stated_nor_than_a_bitmap(size, share, seed):
    positions_K = np.flatnonzero(np.random.default_rng(seed).random(size) < share)
    data = indices.positions_to_bytes(positions_K, size)
    assert np.array_equal(indices.positions_from_bytes(memoryview(data), size), positions_K)
    assert len(data) <= indices.most_bytes(size, len(positions_K)) <= 1 + -(-size // 8)


def test_of_equal_entries_the_first_are_sent():
    array_F = np.array([1, -2, 2, 2, -2, 0.5], np.float32)
    read_F, _ = there_and_back(packer("top_k", share=0.5), array_F, Blocks.of_sizes([6]))
    assert read_F.tolist() == [0, -2, 2, 2, 0, 0]


@pytest.mark.parametrize("kind", [kind for kind in CODECS if CodecConfig(kind=kind).codec().for_scales()])
def test_positive_arrays_stay_positive_and_near_over_any_range(kind):
    made = Packer(CodecConfig(kind=kind).codec().for_scales(), kind)
    blocks = Blocks.of_sizes([500])
    for low, high in ((-6, -2), (2, 7), (5, 5.01)):  # Adam's gains: lr / (sqrt(v) + 1e-8)
        gain_F = (10.0 ** np.random.default_rng(0).uniform(low, high, 500)).astype(np.float32)
        read_F, _ = there_and_back(made, gain_F, blocks)
        # One step of logarithms about their mean.
        step = {"int8": 127, "int4": 7}.get(kind, 200)
        assert (np.abs(np.log10(read_F / gain_F)) <= (high - low) / step + 0.01).all() and (read_F > 0).all()
    assert there_and_back(made, np.zeros(500, np.float32), blocks)[0].tolist() == [0.0] * 500
    some_F = np.array([0.0, 3.0] * 250, np.float32)
    message = made.pack(some_F, blocks, np.random.default_rng(0))
    read_F = made.unpack(message, blocks)
    assert (read_F[::2] == 0.0).all() and np.allclose(read_F[1::2], 3.0, rtol=0.01)


def test_zstd_shortens_what_repeats_and_leaves_the_rest():
    blocks = Blocks.of_sizes([4000])
    repeats_F, noise_F = np.tile(np.float32([1, 2]), 2000), np.random.default_rng(0).standard_normal(4000)
    assert there_and_back(packer("none", zstd=True), repeats_F, blocks)[1] < 200
    assert there_and_back(packer("random_k", zstd=True), noise_F, blocks)[1] <= HEADER + 8 + 400 * 8


def test_a_message_of_another_codec_or_vector_is_refused():
    blocks = Blocks.of_sizes([9])
    message = packer("int8").pack(np.ones(9, np.float32), blocks, np.random.default_rng(0))
    for made, other in ((packer("int4"), blocks), (packer("int8"), Blocks.of_sizes([8]))):
        with pytest.raises(ValueError, match=r"this is no message of [89] entries by the codec int"):
            made.unpack(message, other)
