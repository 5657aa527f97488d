"""Metrics of generated texts beside the published definitions and the packages themselves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import ConfigError, DataError
from fedsim.data import text_metrics
from fedsim.data.text_metrics import TEXT_METRICS, check_text_metrics, f1, normalised, score_each, score_texts

OURS = ("exact_match", "f1")
texts = st.lists(st.sampled_from(["a", "The", "cat", "cats", "sat.", "on", "mats!", "", "ünter"]), max_size=8).map(
    " ".join
)


def test_squad_normalisation():
    assert normalised("  The  Cat, an (old) one -- a-b.") == "cat old one ab"
    assert score_texts(["It was great ."], ["it was the Great!"], OURS) == {"exact_match": 1.0, "f1": 1.0}
    # SQuAD's own example of the script: two of three words each way
    assert f1("the green cat slept", "green cat sat") == pytest.approx(2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3))
    assert f1("", "") == f1("the", "a") == 1.0 and f1("", "cat") == f1("cat", "an") == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=6))
def test_values_of_examples_add_up_to_those_of_all(pairs):
    predictions, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    whole = score_texts(predictions, references, OURS)
    each = [score_each([text], [reference], OURS) for text, reference in pairs]
    for name in OURS:
        if not pairs:
            assert math.isnan(whole[name])
        else:
            assert whole[name] == pytest.approx(np.mean([values[name][0] for values in each]), abs=1e-12)
            assert 0 <= whole[name] <= 1


@settings(max_examples=50, deadline=None)
@given(texts, texts)
def test_f1_is_symmetric_and_full_where_texts_match(text, reference):
    assert f1(text, reference) == f1(reference, text)
    assert f1(text, text) == 1.0
    assert score_texts([text], [reference], ["exact_match"])["exact_match"] <= f1(text, reference)


def test_rouge_and_chrf_are_those_of_the_packages():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], use_stemmer=True
    )
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions = ["the cats sat on the mat", "", "nothing in common"]
    references = ["a cat sits on a mat", "the cat", "quite different words"]
    values = score_each(predictions, references)
    assert tuple(values) == TEXT_METRICS
    for i, (text, reference) in enumerate(zip(predictions, references, strict=True)):
        rouge = scorer.score(reference, text)
        assert {name: values[name][i] for name in rouge} == {name: score.fmeasure for name, score in rouge.items()}
        assert values["chrf"][i] == sacrebleu.sentence_chrf(text, [reference]).score / 100
    # rouge-1 by hand: cat(s), on, mat of 6 and 6 words once stemmed
    assert values["rouge1"][0] == pytest.approx(3 / 6)
    assert values["chrf"][0] > values["chrf"][2] and values["chrf"][1] == 0


def test_identical_texts_score_one_in_every_metric():
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    assert set(score_texts(["two words here"], ["two words here"]).values()) == {1.0}


def test_what_cannot_be_scored_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"^unknown text metric 'rougel'; did you mean 'rougeL'\?|rougeL"):
        check_text_metrics(["rougel"])
    with pytest.raises(DataError, match="2 generated texts do not match 1 responses"):
        score_each(["a", "b"], ["a"], OURS)
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r'rouge1 needs the package rouge-score; install it with: pip install "fedsim\[text\]"'
    ):
        score_texts(["a"], ["a"])
    with pytest.raises(ConfigError, match="chrf needs the package sacrebleu"):
        check_text_metrics(["chrf"])
    assert score_texts(["a"], ["a"], OURS) == {"exact_match": 1.0, "f1": 1.0}
