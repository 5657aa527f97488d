"""Tasks of responses: the ids of prompt and response are those of the whole text, and what is cut to fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import DataError, ModelError
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.responses import ResponseEncoder
from fedsim.data.tasks import TASKS
from fedsim.data.tokenize import tokenize
from fedsim.data.written import reference

CAUSAL = ("gpt2", "llama")
some = settings(max_examples=40, deadline=None)
letters = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"))
texts = st.lists(st.text(letters, min_size=1, max_size=9), min_size=1, max_size=6).map(" ".join)
ANSWER = TaskConfig(name="t", fields=("q", "r"), template="Q: {q}\nA:", response=" {r}")
WHOLE = TaskConfig(name="t", fields=("r",), response="{r}")


def examples(*rows):
    return Examples(list(rows), np.zeros(len(rows), np.int64), origin="somewhere")


def encode(task, tokenizer, *rows, max_length=512):
    return tokenize(examples(*rows), task, tokenizer, head_kind="generation", causal=True, max_length=max_length)


def parts(table, i=0):
    """Return the ids of an example's prompt and response."""
    ids = table.ids_Z[table.offsets_N1[i] : table.offsets_N1[i + 1]].tolist()
    return ids[: table.response_starts_N[i]], ids[table.response_starts_N[i] :]


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def begin(tokenizer):
    return [] if tokenizer.bos_token_id not in tokenizer("a")["input_ids"] else [tokenizer.bos_token_id]


@pytest.mark.parametrize("style", CAUSAL)
@some
@given(question=texts, answer=texts)
def test_prompt_and_response_are_the_whole_text_and_end_with_the_end_token(tokenizers, style, question, answer):
    tokenizer = tokenizers[style]
    table = encode(ANSWER, tokenizer, (question, answer))
    prompt, response = parts(table)
    assert prompt == begin(tokenizer) + plain(tokenizer, f"Q: {question}\nA:")
    assert prompt + response == begin(tokenizer) + plain(tokenizer, f"Q: {question}\nA: {answer}") + [
        tokenizer.eos_token_id
    ]
    assert table.read_positions_N[0] == len(prompt) - 1 and table.labels_N[0] == 1
    assert (table.cut_prompts, table.cut_responses) == (0, 0)
    assert reference((question, answer), ANSWER) == f" {answer}"


def test_where_a_token_would_reach_into_the_response_the_two_are_encoded_apart(tokenizers):
    """Without a space between them, byte-level BPE makes one word of a prompt's end and a response's beginning."""
    tokenizer = tokenizers["gpt2"]
    task = TaskConfig(name="t", fields=("q", "r"), template="{q} terr", response="{r}")
    whole = plain(tokenizer, "war terrible")
    prompt, response = parts(encode(task, tokenizer, ("war", "ible")))
    assert prompt == plain(tokenizer, "war terr") and whole[: len(prompt)] != prompt
    assert response == [*plain(tokenizer, "ible"), tokenizer.eos_token_id]


@pytest.mark.parametrize("style", CAUSAL)
def test_spaces_at_the_end_of_a_prompt_belong_to_the_word_behind_it(tokenizers, style):
    spaced = ANSWER.model_copy(update={"template": "Q: {q}\nA: ", "response": "{r}"})
    for task in (ANSWER, spaced):
        assert parts(encode(task, tokenizers[style], ("why", "great"))) == parts(
            encode(ANSWER, tokenizers[style], ("why", "great"))
        )


def test_without_a_prompt_the_first_token_is_read_and_all_others_are_written(tokenizers):
    for style, first in (("gpt2", plain(tokenizers["gpt2"], "a great war")[:1]), ("llama", [1])):
        prompt, response = parts(encode(WHOLE, tokenizers[style], ("a great war",)))
        assert prompt == first
        written = [*plain(tokenizers[style], "a great war"), tokenizers[style].eos_token_id]
        assert response == (written[1:] if style == "gpt2" else written)


def test_special_tokens_in_a_text_stay_text(tokenizers):
    tokenizer = tokenizers["gpt2"]
    prompt, response = parts(encode(ANSWER, tokenizer, ("a <|endoftext|> b", "c <|endoftext|>")))
    assert tokenizer.eos_token_id not in prompt and response.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(response[:-1]) == " c <|endoftext|>"


def test_rows_without_an_optional_field_have_their_own_template(tokenizers):
    tokenizer, task = tokenizers["gpt2"], TASKS["alpaca"]
    table = encode(task, tokenizer, ("add", "1 2", "3"), ("sing", " ", "la"))
    with_input, without = (tokenizer.decode(parts(table, i)[0]) for i in range(2))
    assert with_input == task.template.format(instruction="add", input="1 2")
    assert without == task.template_without["input"].format(instruction="sing")
    kept = ANSWER.model_copy(update={"optional_fields": ("q",)})
    assert tokenizer.decode(parts(encode(kept, tokenizer, ("", "yes")))[0]) == "Q: \nA:"


# -- what is cut -------------------------------------------------------------------------------------------------------

TWO = TaskConfig(name="t", fields=("a", "b", "r"), template="A: {a}\nB: {b}\nC:", response=" {r}")


@pytest.mark.parametrize("style", CAUSAL)
@some
@given(a=texts, b=texts, r=texts, room=st.integers(24, 64))
def test_fields_are_cut_before_the_response_and_never_the_text_around_them(tokenizers, style, a, b, r, room):
    tokenizer = tokenizers[style]
    whole_prompt, whole = parts(encode(TWO, tokenizer, (a, b, r)))
    literal = len(begin(tokenizer)) + sum(len(plain(tokenizer, text)) for text in ("A:", "\nB:", "\nC:"))
    try:
        table = encode(TWO, tokenizer, (a, b, r), max_length=room)
    except DataError as error:
        assert "leave no room" in str(error)
        return
    prompt, response = parts(table)
    assert len(prompt) + len(response) <= room
    assert prompt[-2:] == whole_prompt[-2:] and whole[: len(response)] == response
    if len(whole_prompt) + len(whole) <= room:
        assert (prompt, response) == (whole_prompt, whole)
    elif len(response) < len(whole):  # every field is down to one token, and the space is full
        assert table.cut_responses == 1 and len(prompt) + len(response) == room
        assert len(prompt) <= literal + 2 + 2
    else:
        assert (table.cut_prompts, table.cut_responses) == (1, 0) and len(prompt) < len(whole_prompt)
        assert len(prompt) + len(response) == room


def test_the_longest_field_loses_its_end_first(tokenizers):
    tokenizer = tokenizers["gpt2"]
    row = ("great", "war and " * 20 + "peace", "yes")
    table = encode(TWO, tokenizer, row, max_length=40)
    text = tokenizer.decode(parts(table)[0])
    assert text.startswith("A: great\nB: war and war and") and "peace" not in text and text.endswith("\nC:")
    assert tokenizer.decode(parts(table)[1]) == " yes<|endoftext|>"


def test_a_response_that_does_not_fit_loses_its_end_and_its_end_token(tokenizers):
    tokenizer = tokenizers["gpt2"]
    table = encode(ANSWER, tokenizer, ("great " * 9, "war " * 60), ("great", "war"), max_length=32)
    prompt, response = parts(table)
    assert len(prompt) + len(response) == 32 and tokenizer.eos_token_id not in response
    assert tokenizer.decode(prompt) == "Q: great\nA:"
    assert (table.cut_prompts, table.cut_responses) == (1, 1)
    assert parts(table, 1)[1][-1] == tokenizer.eos_token_id


def test_a_template_as_long_as_the_limit_is_refused(tokenizers):
    task = ANSWER.model_copy(update={"template": "It was " * 10 + "{q}\nA:"})
    with pytest.raises(
        DataError, match=r"^data\.max_length: 16 tokens leave no room for the texts of somewhere, since prompt"
    ):
        encode(task, tokenizers["gpt2"], ("a", "b"), max_length=16)


def test_a_tokenizer_without_an_end_token_is_refused(tokenizers):
    with pytest.raises(ModelError, match="has no end token, with which a response ends"):
        ResponseEncoder(ANSWER, tokenizers["bert"])
    assert ResponseEncoder(ANSWER, tokenizers["llama"]).end_ids == (tokenizers["llama"].eos_token_id,)


def test_a_response_without_tokens_is_refused(tokenizers):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    with pytest.raises(DataError, match="the response 'b' yields no token"):
        encode(WHOLE, tokenizer, ("a",), ("b",))
