"""Devices that come and go: what an interval is, whatever the kind, and that drawn phones have the figures that are known."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.world.availability import DAY, Traces, draw_availability
from fedsim.world.config import AvailabilityConfig, DevicesConfig, Spread
from fedsim.world.devices import MEGABIT, Hardware

KINDS = ("markov", "diurnal", "always")
FIVE_DAYS = 5 * DAY


def intervals(availability, client, until):
    """Return a client's intervals from time 0 on."""
    found, now = [], 0.0
    while True:
        start, end = (float(edge[0]) for edge in availability.interval(now, [client]))
        if start >= until:
            return found
        found.append((start, end))
        now = end


@given(st.sampled_from(KINDS), st.lists(st.floats(0, 30 * DAY), min_size=2, max_size=6), st.integers(0, 3))
def test_an_interval_contains_its_time_or_is_the_next_and_answers_do_not_depend_on_what_was_asked_before(
    kind, times, seed
):
    config, clients = AvailabilityConfig(kind=kind), np.arange(7)
    first, again = draw_availability(config, seed, 7), draw_availability(config, seed, 7)
    answers = {time: first.interval(time, clients) for time in times}
    for time in reversed(times):
        starts, ends = again.interval(time, clients)
        np.testing.assert_array_equal((starts, ends), answers[time])
        assert (ends > time).all() and (starts < ends).all()
        alone = again.interval(time, clients[3:4])
        assert (alone[0][0], alone[1][0]) == (starts[3], ends[3])
        if kind == "markov":  # the same interval is found from everywhere in it
            inside = np.maximum(starts, time)
            assert all(first.interval(float(inside[c]), [c])[1][0] == ends[c] for c in clients)


@pytest.mark.parametrize("kind", ["markov", "diurnal"])
def test_a_client_s_device_does_not_depend_on_how_many_others_there_are(kind):
    few, many = (draw_availability(AvailabilityConfig(kind=kind), 3, clients) for clients in (5, 50))
    for client in range(5):
        assert intervals(few, client, FIVE_DAYS) == intervals(many, client, FIVE_DAYS)


def test_drawn_phones_are_available_as_phones_are():
    clients = 2000
    availability = draw_availability(AvailabilityConfig(), 0, clients)
    share = availability.on_N / (availability.on_N + availability.off_N)
    np.testing.assert_allclose(np.percentile(share, [10, 50, 90]), [0.001, 0.055, 0.26], rtol=0.15)
    some = [intervals(availability, client, FIVE_DAYS) for client in range(300)]
    assert abs(np.median([len(each) for each in some]) - 12) <= 1
    spent = np.array([sum(min(end, FIVE_DAYS) - start for start, end in each) for each in some])
    assert spent.mean() / FIVE_DAYS == pytest.approx(share[:300].mean(), rel=0.1)


def test_drawn_phones_have_the_bandwidth_of_phones():
    link = Hardware.drawn(DevicesConfig(), 0, 2000).downlink_bytes_N / MEGABIT
    assert np.median(link) == pytest.approx(40, rel=0.1) and link.min() >= 0.002 and link.max() == 98


def test_the_share_of_clients_in_reach_follows_the_hour():
    availability = draw_availability(AvailabilityConfig(kind="diurnal", share=0.2, peak_hour=1.0), 0, 500)
    hours = np.array([availability.interval(h * 3600.0, np.arange(500))[0] <= h * 3600.0 for h in range(24)]).mean(
        axis=1
    )
    assert hours.argmax() in (0, 1, 2) and hours[13] < 0.05 and hours.mean() == pytest.approx(0.2, abs=0.02)


@st.composite
def traces(draw):
    """Draw the intervals of some devices, with their periods."""
    devices = []
    for _ in range(draw(st.integers(1, 4))):
        edges = sorted(draw(st.sets(st.integers(0, 40), min_size=0, max_size=8)))
        pairs = list(zip(edges[::2], edges[1::2], strict=False))
        devices.append((pairs, draw(st.integers(max([1, *edges]), 50))))
    return devices


def made(devices):
    counts = [len(pairs) for pairs, _ in devices]
    flat = np.array([pair for pairs, _ in devices for pair in pairs], dtype=float).reshape(-1, 2)
    return Traces(np.cumsum([0, *counts]), flat[:, 0], flat[:, 1], np.array([period for _, period in devices], float))


@given(traces(), st.integers(0, 200))
def test_traces_begin_anew_behind_their_end(devices, time):
    """Against a count of whole seconds: in reach in second t if the trace says so for t modulo its period."""
    starts, ends = made(devices).interval(float(time), np.arange(len(devices)))
    for (pairs, period), start, end in zip(devices, starts, ends, strict=True):
        on = [any(a <= second < b for a, b in pairs) for second in range(period)]
        if not any(on):
            assert start == end == np.inf
            continue
        begins = next(t for t in range(time, time + 2 * period) if on[t % period])
        assert max(start, time) == begins
        leaves = next((t for t in range(begins, begins + 2 * period) if not on[t % period]), np.inf)
        adjacent = any(a == b for (_, a), (b, _) in pairwise(pairs))
        assert end == leaves or adjacent


def test_constant_shares_and_cycles_are_what_they_say():
    config = AvailabilityConfig(share=0.5, cycle_hours=2.0)
    availability = draw_availability(config, 1, 400)
    assert (availability.on_N == 3600).all() and (availability.off_N == 3600).all()
    here = [(availability.interval(hour * 3600.0, np.arange(400))[0] <= hour * 3600.0).mean() for hour in range(30)]
    assert np.mean(here) == pytest.approx(0.5, abs=0.03)
    assert Spread(median=2.0, least=1.0).most is None
