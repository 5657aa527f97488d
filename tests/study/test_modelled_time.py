"""Modelled time in closed form: the slowest client's transfers and training, on devices that only a client decides."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.study.devices import DevicesConfig, Spread
from fedsim.study.modelled_time import hardware_of, round_seconds

SAME = DevicesConfig(tokens_per_second=100.0, downlink_megabits=8.0, uplink_megabits=4.0, latency_seconds=0.25)
SPREAD = DevicesConfig(
    tokens_per_second=Spread(median=100.0, sigma=1.0), downlink_megabits=Spread(median=8.0, sigma=0.5),
    uplink_megabits=Spread(median=4.0, sigma=0.5), seed=3,
)  # fmt: skip


def columns(*rows):
    """Return the columns of rows (round, client, tokens, bytes down, bytes up, status)."""
    names = ("round", "client", "num_tokens", "bytes_down", "bytes_up", "status")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def test_a_client_s_time_is_two_latencies_two_transfers_and_its_training():
    # 2 MB at a megabyte a second, 300 tokens at a hundred, 1 MB at half a megabyte
    assert round_seconds(columns((1, 0, 300, 2_000_000, 1_000_000, "ok")), SAME) == {1: 0.25 + 2 + 3 + 0.25 + 2}


def test_a_round_takes_as_long_as_its_slowest_client_and_waits_for_no_failed_one():
    rows = columns(
        (2, 4, 50, 0, 0, "ok"), (1, 0, 100, 0, 0, "ok"), (1, 1, 700, 0, 0, "ok"), (1, 2, 9_000, 0, 0, "non_finite"),
        (2, 1, 20, 500_000, 0, "ok"),
    )  # fmt: skip
    assert list(round_seconds(rows, SAME).items()) == [(1, 0.5 + 7), (2, 0.5 + 0.2 + 0.5)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_a_round_with_tokens_that_are_not_on_record_has_no_modelled_time(order):
    rows = [(1, 0, 100.0, 0, 0, "ok"), (1, 1, math.nan, 0, 0, "ok"), (1, 2, 200.0, 0, 0, "ok")]
    seconds = round_seconds(columns(*(rows[index] for index in order), (2, 0, 100.0, 0, 0, "ok")), SAME)
    assert math.isnan(seconds[1]) and seconds[2] == 1.5


ROWS = st.lists(
    st.tuples(
        st.integers(1, 3), st.integers(0, 5), st.integers(1, 10**6), st.integers(0, 10**8), st.integers(0, 10**8), st.just("ok")
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(ROWS, st.randoms())
def test_neither_the_order_of_rows_nor_other_clients_change_a_client_s_time(rows, random):
    alone = [round_seconds(columns(row), SPREAD)[row[0]] for row in rows]
    longest = {row[0]: max(time for time, other in zip(alone, rows, strict=True) if other[0] == row[0]) for row in rows}
    shuffled = random.sample(rows, len(rows))
    assert round_seconds(columns(*rows), SPREAD) == round_seconds(columns(*shuffled), SPREAD) == longest


def test_devices_are_log_normal_and_their_parts_are_drawn_apart():
    devices = hardware_of(SPREAD, 2000)
    parts = {
        "tokens_per_second_N": (SPREAD.tokens_per_second, 1), "downlink_bytes_N": (SPREAD.downlink_megabits, 125_000),
        "uplink_bytes_N": (SPREAD.uplink_megabits, 125_000),
    }  # fmt: skip
    logs = np.array([
        np.log(getattr(devices, name) / unit / spread.median) / spread.sigma
        for name, (spread, unit) in parts.items()
    ])  # fmt: skip
    # Standard normal, and uncorrelated: five standard errors at 2,000 draws.
    assert np.abs(logs.mean(axis=1)).max() < 5 / math.sqrt(2000)
    assert np.abs(logs.std(axis=1) - 1).max() < 5 / math.sqrt(4000)
    assert np.abs(np.corrcoef(logs) - np.eye(3)).max() < 5 / math.sqrt(2000)


def test_a_wider_spread_stretches_the_same_draws_and_another_seed_draws_anew():
    def speed(client, sigma, seed=3):
        spread = DevicesConfig(tokens_per_second=Spread(median=100.0, sigma=sigma), seed=seed)
        return math.log(hardware_of(spread, client + 1).tokens_per_second_N[client] / 100.0)

    for client in range(5):
        assert speed(client, 2.0) == pytest.approx(2 * speed(client, 1.0), rel=1e-12)
        assert speed(client, 0.0) == 0.0 and speed(client, 1.0) != speed(client, 1.0, seed=4)
