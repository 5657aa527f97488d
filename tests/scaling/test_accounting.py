import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.scaling.accounting import (
    PARTS,
    ActorSeconds,
    Evenness,
    RoundTimes,
    Timed,
    account,
    evenness,
    strong_scaling,
    weak_scaling,
)

SECONDS = st.floats(0, 1e4).map(lambda seconds: round(seconds, 9))  # as fine as clocks are


@st.composite
def rounds(draw):
    """Any round that can be: the parts may overlap or leave gaps, workers may be lost and replaced."""
    train, server, evaluate, gap = (draw(SECONDS) for _ in range(4))
    actors = draw(st.integers(1, 12))
    shares = draw(st.lists(st.floats(0, 1), max_size=actors))
    busy = [share * train for share in shares]
    if busy and draw(st.booleans()):  # one actor was lost: its successor did the rest of what its time allowed
        busy.append((train - busy[0]) * draw(st.floats(0, 1)))
    beside = draw(st.booleans())
    wall = train + server + gap + (0 if beside else evaluate)
    return RoundTimes(wall, train, server, evaluate, tuple(busy), actors)


@given(rounds())
def test_the_parts_add_up_to_actors_times_wall_time(times):
    parts = account(times)
    assert math.isclose(parts.total, times.actors * times.wall, rel_tol=1e-9, abs_tol=1e-9)
    assert all(getattr(parts, name) >= -1e-9 * (1 + parts.total) for name in PARTS)
    assert math.isclose(parts.compute, sum(times.busy), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(
        parts.compute + parts.orchestration + parts.idle, times.actors * times.train, rel_tol=1e-9, abs_tol=1e-9
    )
    if parts.total > 1e-3:
        assert math.isclose(sum(parts.shares().values()), 1, rel_tol=1e-9)
    else:
        assert all(-1e-6 <= share <= 1 + 1e-6 for share in parts.shares().values())


@given(st.lists(rounds(), min_size=1, max_size=5))
def test_sums_over_rounds_add_up_too(several):
    total = sum((account(times) for times in several), ActorSeconds())
    assert math.isclose(total.total, sum(t.actors * t.wall for t in several), rel_tol=1e-9, abs_tol=1e-9)


def test_a_round_taken_apart_by_hand():
    # 2 actors; training lasts 10 s, in which one trains 8 s and the other 5 s; 1 s server, 3 s evaluation, 2 s records.
    parts = account(RoundTimes(wall=16, train=10, server=1, evaluate=3, busy=(5.0, 8.0), actors=2))
    assert parts == ActorSeconds(compute=13, orchestration=2 * 2, idle=3, reduce=2, evaluation=6, rest=4)
    assert parts.shares()["compute"] == 13 / 32


def test_an_actor_without_work_is_idle_and_one_that_waits_for_calls_is_not():
    assert account(RoundTimes(10, 10, 0, 0, (10.0,), actors=3)) == ActorSeconds(compute=10, idle=20)
    assert account(RoundTimes(10, 10, 0, 0, (4.0, 4.0), actors=2)) == ActorSeconds(compute=8, orchestration=12)
    assert account(RoundTimes(10, 10, 0, 0, (), actors=2)) == ActorSeconds(orchestration=20)


def test_an_evaluation_beside_the_training_counts_as_far_as_the_driver_waited():
    parts = account(RoundTimes(wall=12, train=10, server=1, evaluate=7, busy=(10.0,), actors=1))
    assert parts == ActorSeconds(compute=10, reduce=1, evaluation=1)


def test_two_clocks_that_differ_a_little_do_no_harm_and_records_that_contradict_do():
    parts = account(RoundTimes(wall=9.999, train=10, server=0, evaluate=0, busy=(10.001,), actors=1))
    assert parts == ActorSeconds(compute=10)
    with pytest.raises(ValueError, match="trained for"):
        account(RoundTimes(wall=10, train=10, server=0, evaluate=0, busy=(11.0,), actors=1))


@given(st.dictionaries(st.integers(1, 64), st.floats(0.01, 100), min_size=2, max_size=6))
def test_strong_scaling_is_base_time_over_actors_times_time(seconds):
    found = strong_scaling([Timed(100, 20, n, t, 80) for n, t in seconds.items()])
    base = min(seconds)
    assert [entry.actors for entry in found] == sorted(seconds)
    for entry in found:
        expected = base * seconds[base] / (entry.actors * seconds[entry.actors])
        assert math.isclose(entry.efficiency, expected, rel_tol=1e-12)
        assert math.isclose(entry.speedup, seconds[base] / seconds[entry.actors], rel_tol=1e-12)
    assert found[0].efficiency == found[0].speedup == 1


@given(st.dictionaries(st.integers(1, 64), st.floats(0.01, 100), min_size=2, max_size=6), st.integers(1, 9))
def test_weak_scaling_is_base_time_over_time_of_a_cohort_that_grows_with_the_actors(seconds, each):
    found = weak_scaling([Timed(1000, each * n, n, t, 4.0 * each * n) for n, t in seconds.items()])
    base = min(seconds)
    assert [entry.actors for entry in found] == sorted(seconds)
    for entry in found:
        assert math.isclose(entry.efficiency, seconds[base] / seconds[entry.actors], rel_tol=1e-12)
        assert math.isclose(entry.speedup, entry.efficiency * entry.actors / base, rel_tol=1e-12)
        assert math.isclose(entry.work, 1, rel_tol=1e-12)


def test_points_that_do_other_work_are_no_series():
    points = [Timed(100, 10, 1, 4.0, 40), Timed(100, 20, 2, 5.0, 60), Timed(1000, 10, 2, 1.0, 40)]
    assert strong_scaling(points) == []
    base, weak = weak_scaling(points)
    assert (base.efficiency, weak.efficiency, weak.speedup) == (1.0, 0.8, 1.6)
    assert weak.work == 60 / 80  # the cohort that was drawn had fewer steps than twice the other
    assert weak_scaling(points[1:]) == []


def test_the_evenness_of_client_updates_is_most_over_least_of_each_number_of_actors():
    found = evenness([(2, 3.0), (1, 0.5), (2, 1.5), (4, 9.0), (1, 0.4), (1, 0.8)])
    assert found == [Evenness(1, 0.4, 0.8), Evenness(2, 1.5, 3.0)]
    assert [each.ratio for each in found] == [2.0, 2.0]
    assert evenness([]) == []
