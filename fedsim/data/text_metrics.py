"""Metrics of generated texts beside the responses of the data: exact match, F1, ROUGE and chrF, each in [0, 1].

Every metric is a mean over examples, so values of examples are all that clients or shards have to hand on. ROUGE is that of
Google's package rouge-score and chrF that of sacrebleu, which are imported here alone and when they are first needed.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fedsim.core.errors import ConfigError, DataError, suggestion

TEXT_METRICS = ("exact_match", "f1", "rouge1", "rouge2", "rougeL", "chrf")
"""The metrics, in the order of the tables."""
_PACKAGES = {"rouge": ("rouge_score", "rouge-score"), "chrf": ("sacrebleu", "sacrebleu")}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def check_text_metrics(names: Sequence[str] = TEXT_METRICS) -> None:
    """Refuse metrics that are unknown, or whose package is not installed.

    Raises
    ------
    ConfigError
        Naming the first such metric.
    """
    for name in names:
        if name not in TEXT_METRICS:
            known = ", ".join(TEXT_METRICS)
            raise ConfigError(f"unknown text metric {name!r}{suggestion(name, TEXT_METRICS)}; known are {known}")
        module, package = next((pair for kind, pair in _PACKAGES.items() if name.startswith(kind)), ("", ""))
        if module and find_spec(module) is None:
            raise ConfigError(
                f'the text metric {name} needs the package {package}; install it with: pip install "fedsim[text]"'
            )


def score_texts(
    predictions: Sequence[str], references: Sequence[str], names: Sequence[str] = TEXT_METRICS
) -> dict[str, float]:
    """Return the mean over all examples of each metric; NaN if there are no examples.

    Parameters
    ----------
    predictions, references
        Generated text and response of each example.
    names
        Which of :data:`TEXT_METRICS`; exact_match and f1 need no package.

    Raises
    ------
    ConfigError
        As :func:`check_text_metrics`.
    DataError
        If the two differ in length.
    """
    values = score_each(predictions, references, names)
    return {name: float(values_N.mean()) if len(values_N) else math.nan for name, values_N in values.items()}


def score_each(
    predictions: Sequence[str], references: Sequence[str], names: Sequence[str] = TEXT_METRICS
) -> dict[str, np.ndarray]:
    """Return each metric's value of every example: float64, shape (N,), of which :func:`score_texts` is the mean."""
    check_text_metrics(names)
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} generated texts do not match {len(references)} responses")
    found = {}
    for name in names:
        score = _scorer(name)
        pairs = zip(predictions, references, strict=True)
        found[name] = np.fromiter((score(text, reference) for text, reference in pairs), np.float64, len(references))
    return found


def normalised(text: str) -> str:
    """Return a text as SQuAD compares it (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if two texts are the same once normalised, else 0."""
    return float(normalised(prediction) == normalised(reference))


def f1(prediction: str, reference: str) -> float:
    """Return SQuAD's F1 of the words of two normalised texts; 1 if both are empty, 0 if one is."""
    words, wanted = normalised(prediction).split(), normalised(reference).split()
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))


def _scorer(name: str) -> Callable[[str, str], float]:
    if name in ("exact_match", "f1"):
        return exact_match if name == "exact_match" else f1
    return _chrf if name == "chrf" else lambda text, reference: _rouge(name, text, reference)


def _rouge(name: str, prediction: str, reference: str) -> float:
    return float(_rouge_scorer(name).score(reference, prediction)[name].fmeasure)


@cache
def _rouge_scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def _chrf(prediction: str, reference: str) -> float:
    return float(_chrf_scorer().sentence_score(prediction, [reference]).score) / 100


@cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
