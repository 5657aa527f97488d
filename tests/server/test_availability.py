"""Simulated dropouts and delays: drawn client by client, never of all, and apart from real failures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.availability import answers, in_reach, training_seconds
from server.config import DelayConfig, SamplingConfig

VISITED_N = [10 + client % 7 for client in range(501)]


@given(st.sets(st.integers(0, 500), min_size=1, max_size=40), st.floats(0.0, 0.99), st.integers(0, 5))
def test_simulated_dropout_is_drawn_client_by_client_and_never_takes_all(drawn, dropout, round):
    order = sorted(drawn, reverse=True)
    present, absent = in_reach(order, dropout, 3, round)
    assert present and sorted([*present, *absent]) == sorted(order)
    assert list(present) == [client for client in order if client in present]
    assert set(in_reach(order[::-1], dropout, 3, round)[1]) == set(absent)
    # Whoever else was drawn: beside one that is in reach by itself, every other one's fate is the same.
    if len(present) > 1:
        assert all(in_reach([client, *present], dropout, 3, round)[1] == (client,) for client in absent)
    assert dropout or not absent


def test_simulated_dropout_has_its_rate():
    gone = sum(len(in_reach(range(100), 0.3, 0, round)[1]) for round in range(50))
    assert abs(gone / 5000 - 0.3) < 0.03


COHORTS = st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True)


@given(COHORTS, st.floats(0.0, 0.99), st.floats(0.01, 5.0), st.integers(0, 5))
def test_every_client_that_is_drawn_answers_in_time_late_or_not_at_all(drawn, dropout, deadline, round):
    sampling = SamplingConfig(dropout=dropout, delay=DelayConfig(seconds_per_example=0.1, deadline_seconds=deadline))
    found = answers(sampling, drawn, 3, round, VISITED_N)
    assert sorted([*found.in_time, *found.absent, *found.late]) == sorted(drawn)
    assert found.in_time and list(found.in_time) == [client for client in drawn if client in found.in_time]
    seconds = {client: training_seconds(sampling.delay, 3, round, client, VISITED_N[client]) for client in drawn}
    assert all(seconds[client] > deadline for client in found.late)
    slowest = max(seconds[client] for client in found.in_time)
    assert slowest <= deadline or len(found.in_time) == 1  # the fastest, where all are too slow
    assert found.seconds == (max(deadline, slowest) if found.late else slowest)
    # Who is late does not depend on who else was drawn.
    others = answers(sampling, drawn[::-1], 3, round, VISITED_N)
    assert set(others.late) == set(found.late)


@given(COHORTS, st.integers(0, 5))
def test_without_a_deadline_the_server_waits_for_the_slowest(drawn, round):
    sampling = SamplingConfig(delay=DelayConfig(seconds_per_example=0.1))
    found = answers(sampling, drawn, 3, round, VISITED_N)
    assert (list(found.in_time), found.absent, found.late) == (drawn, (), ())
    assert found.seconds == max(training_seconds(sampling.delay, 3, round, c, VISITED_N[c]) for c in drawn)
    assert answers(SamplingConfig(), drawn, 3, round, VISITED_N).seconds is None


def test_delays_are_work_times_a_slowness_that_a_device_keeps():
    delay = DelayConfig(seconds_per_example=0.2, device_spread=0.5, visit_spread=0.1)
    logs = np.log([[training_seconds(delay, 0, r, c, 30) / 6.0 for r in range(20)] for c in range(400)])
    assert abs(np.median(logs)) < 0.1
    assert logs.mean(axis=1).std() == pytest.approx(0.5, rel=0.15)  # from device to device
    assert logs.std(axis=1).mean() == pytest.approx(0.1, rel=0.15)  # from visit to visit
    alike = DelayConfig(seconds_per_example=0.2, device_spread=0.0, visit_spread=0.0)
    assert math.isclose(training_seconds(alike, 0, 3, 7, 30), 6.0)
