"""The cost model of ``fedsim scale --predict``: what it places, what it recovers, what it refuses."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import TINY, merged

from fedsim import Config
from fedsim.core.errors import ConfigError
from fedsim.scaling.accounting import RoundTimes, account
from fedsim.scaling.cost_model import CostModel, Measured, Work, busiest
from fedsim.scaling.planned import Plans
from fedsim.scaling.points import Point, parse_predicted
from fedsim.scaling.prediction import Predictions, predict
from fedsim.scaling.records import Round, Run

LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=30)


@given(LOADS, st.integers(1, 8))
@example([0], 2)
@example([0, 0, 0], 2)
def test_groups_are_placed_as_by_list_scheduling(loads, actors):
    """The busiest actor has at least its share, and no more than the share and one group (Graham's bound)."""
    groups, examples = busiest(loads, actors)
    assert 1 <= groups <= len(loads)
    assert sum(loads) / actors - 1e-9 <= examples + 1e-3 * sum(loads)
    assert examples <= sum(loads) / actors + max(loads) + 1e-3 * sum(loads)
    if actors == 1:
        assert (groups, examples) == (len(loads), sum(loads))


def measured(work, train, rest):
    return Measured(work, float(np.dot(train, work.train_row())), float(np.dot(rest, work.rest_row())))


def test_costs_that_made_the_times_are_found_and_carry_beyond_them():
    train, rest = (0.01, 0.03, 0.002), (0.02, 0.001, 0.1)
    works = [Work(g, e, c, n) for g, e, c, n in ((2, 80, 10, 1), (1, 40, 10, 2), (4, 190, 20, 1), (10, 300, 50, 2))]
    model = CostModel.fit([measured(work, train, rest) for work in works])
    np.testing.assert_allclose(model.train, train, rtol=1e-6)
    np.testing.assert_allclose(model.rest, rest, rtol=1e-6)
    far = Work(100.0, 4000.0, 1000.0, 2)
    assert model.seconds(far) == pytest.approx(measured(far, train, rest).seconds)


def test_a_point_that_was_disturbed_moves_the_costs_little():
    train, rest = (0.01, 0.03, 0.002), (0.02, 0.001, 0.1)
    works = [Work(float(g), 40.0 * g, 10.0 * g, n) for g, n in ((1, 2), (2, 1), (3, 2), (4, 1), (6, 2), (8, 1))]
    points = [measured(work, train, rest) for work in works]
    points[2] = Measured(works[2], 6 * points[2].train, 6 * points[2].rest)
    far = Work(100.0, 4000.0, 1000.0, 2)
    assert CostModel.fit(points).seconds(far) == pytest.approx(measured(far, train, rest).seconds, rel=0.05)


def test_no_cost_is_negative():
    """A round of much work that was quicker by chance does not make work cost less than nothing."""
    works = [Work(1.0, 10.0 * k, 10.0, 1) for k in (1, 2, 3)]
    model = CostModel.fit([Measured(work, seconds, 0.1) for work, seconds in zip(works, (1.0, 0.9, 0.8), strict=True)])
    assert min(*model.train, *model.rest) >= 0.0


def test_too_few_points_are_refused():
    with pytest.raises(ConfigError, match="at least 3 measured points"):
        CostModel.fit([Measured(Work(1.0, 1.0, 1.0, 1), 1.0, 1.0)] * 2)


@pytest.mark.parametrize(
    "text", ["clients=10,cohort", "cohort=10", "clients=0", "clients=1,clients=2", "actor=1,clients=2", "clients=1.5"]
)
def test_what_is_no_point_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="--predict clients=1000,cohort=100"):
        parse_predicted([text])


def run_of(point, train, rest):
    """Return a run whose times are those of known costs, in the rounds after the first."""
    config = Config(**merged(TINY, {"executor": "local", "rounds": 3, **point_keys(point)}))
    plan = Plans().of(config, ())
    rounds = []
    for number in range(3):
        made = measured(plan.work([number], point.actors), train, rest)
        times = RoundTimes(made.seconds, made.train, made.rest, 0.0, (), point.actors)
        rounds.append(Round(number + 1, times, account(times), point.cohort, 0, 0, 0))
    return config, Run(point, 1, point.actors, tuple(rounds), 0.0, 0.0, {}, {})


def point_keys(point):
    return {"partition": {"clients": point.clients}, "sampling": {"clients_per_round": point.cohort}}


def test_a_larger_point_is_predicted_from_the_cohorts_that_its_seed_draws():
    """From 12 clients to 24, each with half the examples: the work of the larger point's own cohorts is what counts."""
    train, rest = (0.01, 0.03, 0.002), (0.02, 0.001, 0.0)
    asked = Point(24, 20, 1)
    made = {point: run_of(point, train, rest) for point in (*(Point(12, c, 1) for c in (2, 4, 6, 9)), asked)}
    configs = {point: config for point, (config, _) in made.items()}
    found = predict(
        [run for _, run in made.values()], configs, {asked: configs[asked], Point(24, 24, 1): configs[asked]}
    )
    run, never = found.asked
    assert run.error == pytest.approx(0.0, abs=0.05)  # medians of rounds, so not exactly the costs
    assert never.measured is None and never.error is None
    assert {each.point for each in found.left_out} == made.keys() - {asked}
    assert Predictions.of_record(found.record()) == found
