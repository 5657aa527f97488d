"""Separable CMA-ES: what it finds, and what it knows of chance."""

import numpy as np
import pytest

from fedsim.core.cma import Rates, SeparableCma, Spread, usual_population


def search(size: int, seed: int = 0, population: int | None = None, deviation: float = 1.0) -> SeparableCma:
    return SeparableCma(np.zeros(size), np.full(size, deviation), population, np.random.default_rng(seed))


def test_it_finds_the_minimum_of_a_quadratic_a_million_times_steeper_in_one_entry_than_in_another():
    curvature_F, own = 10.0 ** np.linspace(0, 6, 20), search(20)
    steps = 0
    while steps < 1000 and curvature_F @ np.square(own.mean_F - 3.0) > 1e-12:
        own.tell((curvature_F * np.square(own.ask() - 3.0)).sum(1))
        steps += 1
    assert steps < 1000
    # What it learned is the shape: steep entries have small deviations.
    shape_F = own.deviation_F * np.sqrt(curvature_F)
    assert shape_F.max() / shape_F.min() < 10


def test_only_the_order_of_losses_counts_and_a_loss_that_is_no_number_comes_last():
    ends = []
    for change in (lambda losses_N: losses_N, np.exp, lambda losses_N: np.where(losses_N > 5, np.nan, losses_N)):
        own = search(4, population=8)
        for _ in range(5):
            # At most half of the candidates are worse than 5, so the parents stay the same.
            losses_N = np.square(own.ask() - 0.5).sum(1)
            order_N = np.argsort(np.argsort(losses_N)).astype(float)
            own.tell(change(order_N + (order_N >= 4) * 2))
        ends.append(own.mean_F)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_where_no_loss_is_a_number_the_result_is_none():
    own = search(3)
    own.ask()
    own.tell(np.full(usual_population(3), np.nan))
    assert np.isnan(own.mean_F).all()


def test_by_chance_alone_a_mean_walks_as_far_as_it_says():
    """The server compares devices' results with it."""
    ends, said = [], []
    for seed in range(150):
        own = search(30, seed, deviation=0.5)
        chance = np.random.default_rng(1000 + seed)
        for _ in range(6):
            own.tell(chance.permutation(len(own.ask())).astype(float))
        ends.append(own.mean_F)
        said.append(own.walked)
    assert np.var(ends) == pytest.approx(0.5**2 * np.mean(said), rel=0.1)


def test_steps_that_agree_make_deviations_grow_and_steps_that_turn_back_make_them_shrink():
    rates, one_F = Rates(30, 5.0), np.ones(30)
    ends = {}
    for name, signs in {"agree": (1, 1), "turn": (1, -1)}.items():
        spread = Spread.of(one_F)
        for step in range(20):
            spread, _ = spread.after(rates, signs[step % 2] * one_F, one_F, step)
        ends[name] = spread.deviation_F.mean()
    assert ends["agree"] > 1.5 and ends["turn"] < 0.8
