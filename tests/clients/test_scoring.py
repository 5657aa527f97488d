import io

import numpy as np
import pytest
import torch
from rich.console import Console
from support import make_tiny

from clients.analysis.scoring import layer_score, layer_scores
from clients.tuners.initial import initial_vector
from clients.tuners.prefix_tuner import PrefixTuner
from clients.worker import ClientWorker
from fedsim.core import seeds
from fedsim.simulation.layer_choice import _scoring_clients, select_layers
from fedsim.simulation.preparation import prepare


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


def plain_score(hidden: np.ndarray, mask: np.ndarray, kind: str) -> float:
    """A plain implementation of the definitions, example by example and entry by entry."""
    count = len(hidden)
    matrix = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            pairs = [
                (hidden[i, t, e], hidden[j, t, e], mask[i, t], mask[j, t])
                for t in range(hidden.shape[1])
                for e in range(hidden.shape[2])
            ]
            if kind == "naswot":
                matrix[i, j] = sum((a > 0) == (b > 0) for a, b, *inside in pairs if all(inside))
            else:
                gaps = [abs(a * x - b * y) for a, b, x, y in pairs]
                matrix[i, j] = sum(gaps) if kind == "l1" else sum(gap**2 for gap in gaps) ** 0.5
    if kind == "naswot":
        return float(np.log(np.linalg.det(matrix)))
    eigenvalues = np.linalg.eigvals(matrix.max() - matrix).real
    return sum(float(np.log(max(value, 0.0) + 1e-5) + 1 / (max(value, 0.0) + 1e-5)) for value in eigenvalues)


@pytest.mark.parametrize("padding", ["zero", "keep"])
@pytest.mark.parametrize("kind", ["naswot", "l1", "l2"])
def test_the_other_scores_are_their_definitions(kind, padding):
    rng = np.random.default_rng(3)
    for count in (2, 3, 6):
        hidden = rng.normal(size=(count, 4, 9)).astype(np.float32)
        mask = np.array([[1, 1, 1, int(row % 2 == 0)] for row in range(count)])
        ours = layer_score(hidden, mask if padding == "zero" else None, kind)
        seen = mask if padding == "zero" else np.ones_like(mask)
        assert ours == pytest.approx(plain_score(hidden.astype(float), seen, kind), rel=1e-6)


def test_two_examples_by_hand():
    hidden = np.array([[[3.0, -1.0, 2.0]], [[0.0, 3.0, 2.0]]])
    assert layer_score(hidden, kind="naswot") == pytest.approx(
        np.log(3 * 3 - 1 * 1)
    )  # signs + - + and 0 + +: one agrees
    for kind, distance in (("l1", 7.0), ("l2", 5.0)):  # [[d, 0], [0, d]]
        value = distance + 1e-5
        assert layer_score(hidden, kind=kind) == pytest.approx(2 * (np.log(value) + 1 / value))


@pytest.mark.parametrize("kind", ["cosine", "naswot", "l1", "l2"])
def test_every_score_is_a_number_where_the_published_code_has_none(kind):
    """Equal rows, rows of zeros, and a row amid others, which gives l1 and l2 a negative eigenvalue."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=(1, 2, 30))
    amid = np.concatenate([np.zeros((1, 2, 30)), np.eye(60).reshape(60, 2, 30)])
    for hidden in (np.repeat(base, 3, axis=0), np.zeros((3, 2, 5)), amid, base):
        assert np.isfinite(layer_score(hidden, kind=kind))
    distances = np.linalg.norm(amid.reshape(61, 1, 60) - amid.reshape(1, 61, 60), axis=2)
    assert np.linalg.eigvalsh(distances.max() - distances).min() < -0.1


def test_what_looks_alike_scores_high_but_for_naswot():
    rng = np.random.default_rng(5)
    base, noise = rng.normal(size=(1, 3, 8)), rng.normal(size=(6, 3, 8))
    alike, unlike = base + 0.3 * noise, base + 3.0 * noise
    assert layer_score(alike, kind="cosine") > layer_score(unlike, kind="cosine")
    assert layer_score(alike, kind="naswot") < layer_score(unlike, kind="naswot")


@pytest.mark.parametrize("kind", ["cosine", "naswot", "l1", "l2"])
def test_one_example_scores_the_same_in_every_layer(kind):
    hidden = list(np.random.default_rng(6).normal(size=(4, 1, 3, 6)))
    scores = layer_scores(hidden, kind=kind)
    np.testing.assert_allclose(scores, scores[0], rtol=1e-12)
    assert kind != "cosine" or scores[0] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["cosine", "naswot", "l1", "l2"])
def test_a_run_scores_as_its_config_says(kind):
    """The choice of a whole selection, from the scores of the clients' own batches."""
    console = Console(file=io.StringIO(), width=200)
    config = make_tiny(executor="local", layers={"score": kind, "score_clients": 3, "score_batch_size": 5})
    choice = select_layers(config, console)
    scores, weights = [], []
    worker = ClientWorker(prepare(config).spec)
    full = worker.info().full
    vector_F = initial_vector(full, PrefixTuner(config.prompt), config.model.head, config.seed)
    prompt = torch.from_numpy(full.split(vector_F)[0]).unsqueeze(0)
    for client in _scoring_clients(config):
        own = worker._spec.shards.train(client)
        batch = worker._spec.train.batch(seeds.stream(config.seed, 0, client, "score").permutation(own)[:5])
        hidden = [h.numpy() for h in worker._backbone.hidden_states(batch, prompt, full.layers)]
        scores.append([layer_score(h, batch.attention_mask_BT, kind) for h in hidden[1:]])
        weights.append(len(own))
    np.testing.assert_allclose(choice.scores_L, np.average(scores, axis=0, weights=weights), rtol=1e-6)
    assert choice.layers == tuple(sorted(np.argsort(-choice.scores_L)[:2].tolist()))
    assert "layers.score_batch_size=1" not in console.file.getvalue()


def test_a_batch_of_one_is_warned_of():
    console = Console(file=io.StringIO(), width=400)
    config = make_tiny(executor="local", layers={"score_clients": 2, "score_batch_size": 1})
    choice = select_layers(config, console)
    np.testing.assert_allclose(choice.scores_L, 1.0, atol=1e-8)
    assert "layers.score_batch_size=1 leaves no pairs of examples to compare" in console.file.getvalue()
