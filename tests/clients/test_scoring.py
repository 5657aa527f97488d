import numpy as np
import pytest

from clients.scoring import layer_score, layer_scores


def test_score_of_two_examples_by_hand():
    # Cosine 0.6 between the rows: eigenvalues 1.6 and 0.4.
    hidden = np.array([[[1.0, 0.0]], [[0.6, 0.8]]])
    expected = sum(np.log(value + 1e-5) + 1 / (value + 1e-5) for value in (1.6, 0.4))
    assert layer_score(hidden) == pytest.approx(expected, rel=1e-9)


def test_similar_examples_score_higher_and_scale_does_not_matter():
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=(1, 3, 8)), rng.normal(size=(6, 3, 8))
    scores = [layer_score(base + spread * noise) for spread in (0.1, 0.5, 2.0)]
    assert scores == sorted(scores, reverse=True)
    assert layer_score(5.0 * (base + noise)) == pytest.approx(layer_score(base + noise))


def test_padding_counts_only_where_asked():
    rng = np.random.default_rng(1)
    hidden, mask = rng.normal(size=(4, 5, 6)), np.array([[1, 1, 1, 0, 0]] * 4)
    other = hidden.copy()
    other[:, 3:] = rng.normal(size=(4, 2, 6))
    assert layer_score(hidden, mask) == layer_score(other, mask)
    assert layer_score(hidden) != layer_score(other)


def test_the_last_layer_is_left_out_where_asked():
    hidden = list(np.random.default_rng(2).normal(size=(4, 5, 3, 6)))
    everything, published = layer_scores(hidden), layer_scores(hidden, score_last=False)
    assert everything.shape == (3,)
    np.testing.assert_array_equal(published, [*everything[:2], 0.0])
