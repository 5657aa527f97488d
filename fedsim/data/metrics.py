"""Metrics, all computed from a confusion matrix, so that partial evaluations add up.

Shape suffix: C classes. ``confusion_CC[i, j]`` counts the examples of class i that were predicted as class j.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedsim.core.errors import DataError, PluginError, shown, suggestion
from fedsim.core.messages import Evaluation
from fedsim.core.plugins import guarded
from fedsim.core.registry import Registry, function

METRICS: Registry[Callable[[np.ndarray], float]] = Registry("metric", "data.task.metric", check=function)
"""The metrics that a task may name, larger is better."""


@METRICS.register("accuracy")
def accuracy(confusion_CC: np.ndarray) -> float:
    """Return the accuracy: the share of examples on the diagonal."""
    return float(np.trace(confusion_CC) / confusion_CC.sum())


@METRICS.register("token_accuracy")
def token_accuracy(confusion_CC: np.ndarray) -> float:
    """Return the share of a response's tokens that are the most likely ones behind all tokens before them."""
    return accuracy(confusion_CC)


@METRICS.register("matthews")
def matthews(confusion_CC: np.ndarray) -> float:
    """Return the Matthews correlation in its multi-class form R_K (Gorodkin 2004, eq. 8).

    It is 0 where it is undefined: all examples of one class, or all predicted as one class.
    """
    counts_CC = confusion_CC.astype(np.float64)  # products of counts would overflow int64 on large sets
    true_C, predicted_C = counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    total = counts_CC.sum()
    covariance = np.trace(counts_CC) * total - true_C @ predicted_C
    variance_true = total**2 - true_C @ true_C
    variance_predicted = total**2 - predicted_C @ predicted_C
    if variance_true == 0 or variance_predicted == 0:
        return 0.0
    return float(covariance / (math.sqrt(variance_true) * math.sqrt(variance_predicted)))


def f1(confusion_CC: np.ndarray) -> float:
    """Return binary F1 of class 1; 0 if no example belongs to it or is predicted as such."""
    hits = int(confusion_CC[1, 1])
    mentions = int(confusion_CC[1, :].sum() + confusion_CC[:, 1].sum())
    return 2 * hits / mentions if mentions else 0.0


@METRICS.register("accuracy_f1")
def accuracy_f1(confusion_CC: np.ndarray) -> float:
    """Return the mean of accuracy and F1 of class 1, as GLUE reports MRPC (Wang et al. 2019)."""
    return (accuracy(confusion_CC) + f1(confusion_CC)) / 2


def compute(name: str, confusion_CC: np.ndarray) -> float:
    """Return the metric ``name`` of a confusion matrix; NaN if it is empty.

    Raises
    ------
    DataError
        If there is no such metric, or it needs two classes and the matrix has more.
    PluginError
        If a plug-in's metric fails.
    """
    if name not in METRICS:
        raise DataError(
            f"data.task.metric: unknown metric {name!r}{suggestion(name, METRICS)}; known are {', '.join(METRICS)}"
        )
    if name == "accuracy_f1" and confusion_CC.shape != (2, 2):
        raise DataError(f"data.task.metric: accuracy_f1 needs two classes, the task has {confusion_CC.shape[0]}")
    if confusion_CC.sum() == 0:
        return math.nan
    with guarded(f"the metric {name!r}", METRICS.origin(name)):
        value = METRICS[name](confusion_CC)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise PluginError(f"the metric {name!r} of {METRICS.origin(name)} gave {shown(value)}, which is no number")
    return float(value)


def loss(evaluation: Evaluation) -> float:
    """Return an evaluation's mean loss; NaN if it has no examples."""
    return evaluation.loss_sum / evaluation.num_examples if evaluation.num_examples else math.nan


def perplexity(loss: float) -> float:
    """Return the exponential of a mean loss of tokens; infinite where that is too large for a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
