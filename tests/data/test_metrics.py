import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.errors import DataError
from fedsim.core.messages import Evaluation
from fedsim.data.metrics import METRICS, compute, loss

labels = st.integers(2, 5).flatmap(
    lambda classes: st.lists(
        st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60
    ).map(lambda pairs: (classes, pairs))
)


def confusion(classes: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    matrix = np.zeros((classes, classes), np.int64)
    for true, predicted in pairs:
        matrix[true, predicted] += 1
    return matrix


@given(labels)
def test_accuracy_counts_the_pairs_that_agree(drawn):
    classes, pairs = drawn
    expected = sum(true == predicted for true, predicted in pairs) / len(pairs)
    assert compute("accuracy", confusion(classes, pairs)) == pytest.approx(expected)


@given(labels)
def test_matthews_is_the_correlation_of_one_hot_labels(drawn):
    """R_K by its definition (Gorodkin 2004, eq. 1-4): covariances of the one-hot matrices, summed over classes."""
    classes, pairs = drawn
    true = np.eye(classes)[[pair[0] for pair in pairs]]
    predicted = np.eye(classes)[[pair[1] for pair in pairs]]
    true -= true.mean(axis=0)
    predicted -= predicted.mean(axis=0)
    scale = math.sqrt((true**2).sum() * (predicted**2).sum())
    expected = (true * predicted).sum() / scale if scale > 1e-9 else 0.0
    assert compute("matthews", confusion(classes, pairs)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_accuracy_f1_is_the_mean_with_the_harmonic_mean_of_precision_and_recall(pairs):
    hits = sum(pair == (1, 1) for pair in pairs)
    predicted = sum(p for _, p in pairs)
    true = sum(t for t, _ in pairs)
    precision = hits / predicted if predicted else 0.0
    recall = hits / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = sum(t == p for t, p in pairs) / len(pairs)
    assert compute("accuracy_f1", confusion(2, pairs)) == pytest.approx((accuracy + f1) / 2)


def test_hand_computed_numbers():
    two = np.array([[50, 10], [5, 35]])
    assert compute("accuracy", two) == pytest.approx(0.85)
    assert compute("accuracy_f1", two) == pytest.approx((0.85 + 70 / 85) / 2)
    assert compute("matthews", two) == pytest.approx((50 * 35 - 10 * 5) / math.sqrt(45 * 40 * 60 * 55))


def test_matthews_of_one_predicted_class_is_zero_and_of_large_counts_does_not_overflow():
    assert compute("matthews", np.array([[9, 0], [3, 0]])) == 0.0
    many = 4_000_000_000
    assert compute("matthews", np.diag([many, many])) == pytest.approx(1.0)
    assert compute("matthews", np.diag([many, many])[::-1]) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", METRICS)
def test_no_examples_give_nan(name):
    assert math.isnan(compute(name, np.zeros((2, 2), np.int64)))


def test_loss_is_a_mean_over_examples():
    assert loss(Evaluation(np.array([[3, 1], [0, 4]]), 4.0)) == 0.5
    assert math.isnan(loss(Evaluation(np.zeros((2, 2), np.int64), 0.0)))


def test_errors():
    with pytest.raises(DataError, match=r"unknown metric 'acuracy' \(did you mean 'accuracy'\?\)"):
        compute("acuracy", np.eye(2))
    with pytest.raises(DataError, match="accuracy_f1 needs two classes, the task has 3"):
        compute("accuracy_f1", np.eye(3))
