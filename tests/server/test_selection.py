"""Layer scores, ranking and choice."""

import numpy as np
import pytest

from fedsim.core.errors import ClientError, ConfigError
from fedsim.core.uses import EVERY_KEY
from server.config import LayersConfig
from server.selection import choose_layers, combine_scores, num_chosen, rank, score_spread

SCORES_L = np.array([3.0, 9.0, 1.0, 9.0, 5.0, 0.0])


def choose(num_layers=6, scores_L=SCORES_L, seed=0, **keys):
    return choose_layers(LayersConfig.model_validate(keys, context=EVERY_KEY), num_layers, scores_L, seed)


def test_scores_are_averaged_by_examples():
    combined = combine_scores([np.array([1.0, 2.0]), np.array([5.0, 0.0])], [30, 10])
    np.testing.assert_array_equal(combined, [2.0, 1.5])


@pytest.mark.parametrize(
    "scores, examples, sentence",
    [
        (np.zeros((0, 3)), [], "no client scored"),
        (np.array([[1.0, np.nan], [1.0, 2.0]]), [1, 1], "of 1 of 2 clients"),
        (np.array([[1.0, np.inf]]), [1], "of 1 of 1 clients"),
    ],
)
def test_scores_that_cannot_be_combined(scores, examples, sentence):
    with pytest.raises(ClientError, match=sentence):
        combine_scores(scores, examples)


def test_scores_and_examples_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        combine_scores(np.zeros((2, 3)), [1, 2, 3])


def test_a_spread_is_that_of_the_differences_between_layers_not_of_the_clients_levels():
    shape_L, rng = np.array([1.0, 3.0, 2.0]), np.random.default_rng(0)
    levels_k, examples = rng.normal(20, 9, 50), rng.integers(1, 90, 50)
    combined_L = combine_scores(levels_k[:, None] + shape_L, examples)
    assert score_spread(levels_k[:, None] + shape_L, examples) == pytest.approx(np.stack([combined_L, combined_L]))
    low_L, high_L = score_spread(levels_k[:, None] + shape_L + rng.normal(0, 1, (50, 3)), examples)
    assert (low_L < combined_L).all() and (combined_L < high_L).all() and (high_L - low_L < 5).all()


def test_rank_is_descending_with_the_lower_layer_first_among_equals():
    assert rank(SCORES_L).tolist() == [1, 3, 4, 0, 2, 5]
    assert rank(np.zeros(40)).tolist() == list(range(40))


def test_choices():
    assert choose(choose="score", share=0.5) == (1, 3, 4)
    assert choose(choose="score", share=1 / 6) == (1,)
    assert choose(choose="all", share=0.1) == (0, 1, 2, 3, 4, 5)
    assert choose(choose="top", share=0.34) == (3, 4, 5)
    assert choose(choose="bottom", share=0.33) == (0, 1)
    assert choose(choose="fixed", fixed=(4, 0)) == (0, 4)
    assert all(type(layer) is int for layer in choose(choose="score"))


def test_random_layers_depend_on_the_seed_alone():
    drawn = {choose(choose="random", share=0.5, seed=seed, scores_L=None) for seed in range(200)}
    assert len(drawn) == 20 and all(len(layers) == 3 and list(layers) == sorted(layers) for layers in drawn)
    assert choose(choose="random", seed=5) == choose(choose="random", seed=5)


@pytest.mark.parametrize(
    "share, layers, count",
    [(0.07, 100, 7), (0.1, 30, 3), (0.1, 31, 4), (0.01, 12, 1), (1.0, 7, 7), (0.7, 10, 7), (1 / 3, 24, 8)],
)
def test_a_share_is_rounded_up_but_not_by_rounding_errors(share, layers, count):
    assert num_chosen(share, layers) == count


def test_fixed_layers_that_the_model_lacks():
    with pytest.raises(ConfigError, match="names layer 6, but the model has 6 layers; name layers from 0 to 5"):
        choose(choose="fixed", fixed=(2, 6))


@pytest.mark.parametrize("scores_L", [None, np.zeros(5)])
def test_score_needs_a_score_for_each_layer(scores_L):
    with pytest.raises(ValueError, match="one score for each of 6 layers"):
        choose(choose="score", scores_L=scores_L)
