"""Label words that are proposed: each one token of the model and another's of no class; none where labels say nothing."""

import pytest

from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig
from fedsim.data.config import TaskConfig
from fedsim.data.guessing.label_words import wording
from fedsim.data.label_words import label_words


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


@pytest.mark.parametrize(
    ("labels", "column", "words"),
    [
        (("negative", "positive"), "label", ("terrible", "great")),
        (("0", "1"), "sentiment", ("terrible", "great")),
        (("no", "yes"), "spam", ("No", "Yes")),
        (("food", "music", "Travel"), "topic", ("food", "music", "travel")),
        (("0", "1"), "label", None),
        (("food", "xylophones"), "topic", None),
    ],
)
@pytest.mark.parametrize("fields", [("text",), ("a", "b")], ids=["one text", "a pair"])
def test_the_words_are_a_task_that_the_model_can_be_asked(tokenizer, labels, column, words, fields):
    found = wording(labels, fields, column, tokenizer, causal=False)
    assert (found and found.words) == words
    if found is not None:
        task = TaskConfig(name="t", fields=fields, labels=labels, template=found.template, label_words=found.words)
        assert len(set(label_words(task, tokenizer, causal=False).single_C)) == len(labels)
