"""Tokens that the model does not know are named before anything is started; padding that it does not know is replaced."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from fedsim.core.errors import ModelError
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.label_words import label_words
from fedsim.data.tokenize import tokenize
from fedsim.data.vocabulary import Vocabulary, check_label_words, fitted

STYLES = ("roberta", "bert", "gpt2", "llama")
CAUSAL = ("gpt2", "llama")
TASK = TaskConfig(
    name="own", fields=("text",), labels=("0", "1"), label_words=("No", "Yes"), template="{text} It was <mask> ."
)
PAIRS = TASK.model_copy(update={"fields": ("a", "b"), "template": "{a} ? <mask> , {b}"})
PLAIN = [("a great film",), ("It is not a war",)]


def examples(*texts):
    return Examples(list(texts), np.zeros(len(texts), np.int64), {}, "train.jsonl")


def extended(tokenizer, *words, **special):
    """Return a copy of a tokenizer with words, or special tokens, added to it."""
    copied = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        model_input_names=tokenizer.model_input_names,
        **dict(tokenizer.special_tokens_map),
    )
    copied.add_tokens(list(words))
    copied.add_special_tokens(special)
    return copied


def known(tokenizer, **changes):
    return replace(Vocabulary("my-model", len(tokenizer), 2, None), **changes)


def fit(tokenizer, vocabulary, *texts, task=TASK, head="verbalizer", style="roberta", max_length=32):
    given = examples(*texts)
    table = tokenize(given, task, tokenizer, head_kind=head, causal=style in CAUSAL, max_length=max_length)
    return table, fitted(table, given, task, tokenizer, vocabulary)


@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
@pytest.mark.parametrize("style", STYLES)
def test_a_table_of_known_tokens_is_left_as_it_is(tokenizers, style, head):
    table, same = fit(tokenizers[style], known(tokenizers[style]), *PLAIN, head=head, style=style)
    assert same is table


@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
@pytest.mark.parametrize("style", STYLES)
def test_a_word_that_was_added_is_named_with_its_text(tokenizers, style, head):
    tokenizer = extended(tokenizers[style], "wonderful")
    fit(tokenizer, known(tokenizers[style]), *PLAIN, head=head, style=style)
    with pytest.raises(ModelError) as caught:
        fit(tokenizer, known(tokenizers[style]), *PLAIN, ("a wonderful film",), head=head, style=style)
    number = len(tokenizers[style])
    assert str(caught.value).startswith(
        f"train.jsonl: the text 'a wonderful film' has the token 'wonderful' (id {number}), but the model my-model knows the "
        f"tokens 0 to {number - 1} only; use its own tokenizer, or resize its embeddings"
    )


def test_the_text_of_a_pair_is_named(tokenizers):
    tokenizer = extended(tokenizers["bert"], "wonderful")
    with pytest.raises(ModelError, match=r"the text \('a film', 'so wonderful'\) has the token 'wonderful'"):
        fit(tokenizer, known(tokenizers["bert"]), ("a war", "a film"), ("a film", "so wonderful"), task=PAIRS)


def test_a_word_of_the_template_is_not_blamed_on_a_text(tokenizers):
    tokenizer = extended(tokenizers["roberta"], "wonderful")
    task = TASK.model_copy(update={"template": "{text} wonderful <mask> ."})
    with pytest.raises(
        ModelError, match=r"^data\.task\.template: '\{text\} wonderful <mask> \.' has the token 'wonderful'"
    ):
        fit(tokenizer, known(tokenizers["roberta"]), *PLAIN, task=task)


def test_a_mask_that_was_added_is_not_blamed_on_a_text(tokenizers):
    tokenizer = extended(tokenizers["roberta"], mask_token=AddedToken("[M]"))
    with pytest.raises(ModelError, match=r"^the tokenizer puts the token '\[M\]' \(id \d+\) into every text"):
        fit(tokenizer, known(tokenizers["roberta"]), *PLAIN)
    fit(tokenizer, known(tokenizers["roberta"]), *PLAIN, head="classifier")


def test_a_label_word_that_was_added_is_named(tokenizers):
    tokenizer = extended(tokenizers["bert"], "wonderful")
    task = TASK.model_copy(update={"label_words": ("no", "wonderful")})
    words = label_words(task, tokenizer, causal=False)
    check_label_words(words, task, tokenizer, known(tokenizer))
    with pytest.raises(
        ModelError, match=r"^data\.task\.label_words: 'wonderful' is the token 'wonderful' \(id \d+\), but the"
    ):
        check_label_words(words, task, tokenizer, known(tokenizers["bert"]))


def test_a_label_word_with_an_added_token_is_named(tokenizers):
    tokenizer = extended(tokenizers["bert"], "wonderful")
    task = TASK.model_copy(update={"label_words": (("no", "not great"), ("yes", "so wonderful"))})
    words = label_words(task, tokenizer, causal=False)
    with pytest.raises(ModelError, match=r"^data\.task\.label_words: 'so wonderful' has the token 'wonderful' \(id"):
        check_label_words(words, task, tokenizer, known(tokenizers["bert"]))


@pytest.mark.parametrize(
    ("pad", "expected"),
    [(7, 7), (None, "end"), (-1, "end"), (10**6, "end")],
    ids=["model's", "none", "negative", "large"],
)
@pytest.mark.parametrize("style", ["roberta", "llama"])
def test_padding_that_was_added_is_replaced_by_a_token_of_the_model(tokenizers, style, pad, expected):
    tokenizer = extended(tokenizers[style], pad_token="[PAD]")
    table, new = fit(tokenizer, known(tokenizers[style], pad_id=pad), *PLAIN, style=style)
    assert table.pad_id == len(tokenizers[style])
    assert new.pad_id == (tokenizer.eos_token_id if expected == "end" else expected)
    assert new.ids_Z is table.ids_Z


def test_without_padding_and_end_the_first_token_pads(tokenizers):
    tokenizer = extended(tokenizers["bert"], pad_token="[P]")
    assert tokenizer.eos_token_id is None
    assert fit(tokenizer, known(tokenizers["bert"]), *PLAIN)[1].pad_id == 0


@pytest.mark.parametrize("largest", [2, 7, 300])
def test_token_types_that_the_model_does_not_know_are_named(tokenizers, largest):
    tokenizer = extended(tokenizers["bert"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{largest} [SEP]:{largest}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    texts = (("a war", "a film"),)
    with pytest.raises(
        ModelError, match=rf"\('a war', 'a film'\) has tokens of type {min(largest, 255)}, .* the types 0 to 1 \("
    ):
        fit(tokenizer, known(tokenizer), *texts, task=PAIRS, head="classifier")
    # A model with one type, or none, is given no types.
    for types in (0, 1):
        fit(tokenizer, known(tokenizer, num_types=types), *texts, task=PAIRS, head="classifier")
