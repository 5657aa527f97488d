"""A text that spells a special token stays a text, with Unigram's vocabulary too."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.spelt_out import with_special_tokens_apart
from fedsim.data.tokenize import tokenize

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@pytest.fixture(scope="module")
def unigram():
    """As XLM-RoBERTa's: the special tokens stand in the vocabulary, as likely as can be."""
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(letter, -3.0) for letter in "▁abcdeikmnpsuw.<>/"]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


TASK = TaskConfig(name="t", fields=("text",), template="{text} is <mask> .", labels=("0", "1"), label_words=("a", "b"))


@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
@pytest.mark.parametrize("spelt", SPECIAL)
def test_a_special_token_that_a_text_spells_is_none(unigram, head, spelt):
    examples = Examples([(f"a bad {spelt}cab{spelt}",), ("a bad cab",)], np.zeros(2, np.int64), origin="here")
    table = tokenize(examples, TASK, unigram, head_kind=head, causal=False, max_length=64)
    ids = table.ids_Z[: table.offsets_N1[1]]
    # With the space before it, a letter is two tokens of this vocabulary.
    assert (ids == unigram.mask_token_id).sum() == 2 * (head == "verbalizer")
    allowed = {unigram.mask_token_id, unigram.unk_token_id}
    assert not set(ids) & (set(unigram.all_special_ids) - allowed)
    if head == "verbalizer":
        assert ids[table.read_positions_N[0]] == unigram.mask_token_id
    assert "".join(spelt.split()) in "".join(unigram.convert_ids_to_tokens(ids)).replace("▁", "")


def test_texts_of_other_tokenizers_are_left_as_they_are(unigram, tokenizers):
    texts = [("a <mask> b </s>", "[SEP] <|endoftext|>")]
    for tokenizer in tokenizers.values():
        assert with_special_tokens_apart(tokenizer, texts) is texts
    assert with_special_tokens_apart(unigram, [("a cab", "< mask>")]) == [("a cab", "< mask>")]
    assert with_special_tokens_apart(unigram, [("<unk><s></s>",)]) == [("<unk>< s>< /s>",)]
