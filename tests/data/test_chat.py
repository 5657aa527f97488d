"""Chats: ids as the chat template's own, and texts that cannot end their turn."""

import pytest
from chat_styles import STYLES, with_chat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_responses import encode, parts
from tokenizers import normalizers

from fedsim.core.errors import DataError, ModelError
from fedsim.data.chat import TODAY, ChatTemplate
from fedsim.data.config import TaskConfig
from fedsim.data.dialogue import as_text, from_text, read_messages
from fedsim.data.responses import ResponseEncoder
from fedsim.data.written import reference

CHAT = TaskConfig(name="t", fields=("q", "r"), template="Say: {q}", response="{r}", chat=True)
DIALOGUE = TaskConfig(name="t", fields=("messages",), dialogue=True, chat=True)
some = settings(max_examples=30, deadline=None)
words = st.lists(
    st.sampled_from(["great", "war", "it", "was,", "ü", "Yes.", "\n", "{q}", "user"]), min_size=1, max_size=8
)
texts = words.map(" ".join).filter(str.strip)
spelt = "<|im_end|> <|im_start|> <|im_start|>assistant </s> <s> [/INST] <|im_<|im_end|>end|> <|endoftext|> <|im_ end|> <unk> \n"
hostile = st.lists(st.sampled_from(spelt.split(" ")), min_size=1, max_size=6).map(lambda pieces: "x" + "".join(pieces))


@pytest.fixture(scope="session")
def chats(tokenizers):
    return {style: with_chat(tokenizers, style) for style in STYLES}


def said(*messages):
    return [{"role": role, "content": text} for role, text in messages]


def own_ids(tokenizer, messages, cue=False):
    """Return what the tokenizer itself makes of messages, on the day that templates are told."""
    return tokenizer.apply_chat_template(
        messages,
        chat_template=tokenizer.chat_template.replace("strftime_now('%Y')", "'2024'"),
        add_generation_prompt=cue,
        enable_thinking=False,
        date_string=TODAY.strftime("%d %b %Y"),
    )["input_ids"]


@pytest.mark.parametrize("style", STYLES)
@some
@given(question=texts, answer=texts)
def test_ids_are_those_of_the_chat_template(chats, style, question, answer):
    tokenizer = chats[style]
    messages = said(("user", f"Say: {question.strip()}"), ("assistant", answer.strip()))
    prompt, response = parts(encode(CHAT, tokenizer, (question, answer)))
    assert prompt + response == own_ids(tokenizer, messages)
    assert prompt == own_ids(tokenizer, messages[:-1], cue=True)
    assert tokenizer.decode(response).strip().endswith(tokenizer.decode(ResponseEncoder(CHAT, tokenizer).end_ids[:1]))


@pytest.mark.parametrize("style", STYLES)
def test_a_dialogue_has_its_earlier_turns_as_prompt_and_its_last_answer_as_response(chats, style):
    tokenizer = chats[style]
    turns = [("system", "be kind"), ("user", "great"), ("assistant", "war"), ("user", "why"), ("assistant", "it was")]
    for messages in (turns, turns[1:]):
        prompt, response = parts(encode(DIALOGUE, tokenizer, (as_text(messages),)))
        assert prompt + response == own_ids(tokenizer, said(*messages))
        assert prompt == own_ids(tokenizer, said(*messages[:-1]), cue=True)
    assert reference((as_text(turns),), DIALOGUE) == "it was"


@pytest.mark.parametrize("style", STYLES)
def test_the_task_s_system_message_comes_first_unless_a_dialogue_has_its_own(chats, style):
    tokenizer = chats[style]
    chat, dialogue = (task.model_copy(update={"system": "be brief"}) for task in (CHAT, DIALOGUE))
    whole = own_ids(tokenizer, said(("system", "be brief"), ("user", "Say: a"), ("assistant", "b")))
    assert encode(chat, tokenizer, ("a", "b")).ids_Z.tolist() == whole
    plain, own = [("user", "Say: a"), ("assistant", "b")], ("system", "be kind")
    assert encode(dialogue, tokenizer, (as_text(plain),)).ids_Z.tolist() == whole
    kind = own_ids(tokenizer, said(own, *plain))
    assert encode(dialogue, tokenizer, (as_text([own, *plain]),)).ids_Z.tolist() == kind


@pytest.mark.parametrize("style", STYLES)
@some
@given(question=hostile, answer=hostile)
@example(question="x<|im_end|>", answer="x</s>")
def test_no_text_ends_its_turn(chats, style, question, answer):
    """Tokens that begin and end turns are as many as with harmless texts, in the same parts."""
    tokenizer = chats[style]
    marks = ChatTemplate(tokenizer).marker_ids - {tokenizer.unk_token_id}

    def counts(*row):
        return [[token for token in part if token in marks] for part in parts(encode(CHAT, tokenizer, row))]

    assert counts(question, answer) == counts("great", "war")
    dialogue = as_text([("user", question), ("assistant", answer), ("user", "war"), ("assistant", answer)])
    plain = as_text([("user", "a"), ("assistant", "b"), ("user", "war"), ("assistant", "c")])
    found, wanted = (
        [token for token in encode(DIALOGUE, tokenizer, (text,)).ids_Z if token in marks] for text in (dialogue, plain)
    )
    assert found == wanted


def test_a_spelt_out_token_stays_readable(chats):
    prompt, _ = parts(encode(CHAT, chats["chatml"], ("a <|im_end|> b", "c")))
    assert "Say: a < |im_end|> b<|im_end|>" in chats["chatml"].decode(prompt)


def test_a_text_that_a_normaliser_turns_into_the_end_of_a_turn_is_refused(tokenizers):
    tokenizer = with_chat(tokenizers, "plain_ends")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    wide = "a \uff1c|im_end|\uff1e b"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in tokenizer(wide, add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match="holds what this tokenizer reads as a special token, which would end its turn"):
        encode(CHAT, tokenizer, (wide, "yes"))
    encode(CHAT, tokenizer, ("a \uff1c b", "yes"))


@pytest.mark.parametrize("style", STYLES)
def test_a_long_dialogue_loses_whole_turns_the_oldest_first(chats, style):
    tokenizer = chats[style]
    turns = [("user" if i % 2 == 0 else "assistant", f"great war {i}") for i in range(10)]
    for kept in (8, 6, 4, 2):
        fits = own_ids(tokenizer, said(*turns[-kept:]))
        table = encode(DIALOGUE, tokenizer, (as_text(turns),), max_length=len(fits))
        assert table.ids_Z.tolist() == fits and (table.cut_prompts, table.cut_responses) == (1, 0)
    table = encode(DIALOGUE, tokenizer, (as_text(turns),), max_length=len(fits) - 2)
    prompt, response = parts(table)  # the last question is cut
    assert len(prompt) + len(response) == len(fits) - 2 and table.cut_responses == 0
    assert response == fits[len(fits) - len(response) :]


def test_a_tokenizer_without_a_chat_template_is_refused_in_one_sentence(tokenizers):
    with pytest.raises(ModelError, match=r"has no chat template, which data\.task\.chat needs; use a model"):
        ResponseEncoder(CHAT, tokenizers["gpt2"])


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('no system') }}", "refuses messages of user: 'no system'"),
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "does not write the messages user, assistant",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "does not write",
        ),
        ("{% for m in messages %}{{ nothing.there }}{% endfor %}", "refuses messages of user"),
        ("{% for", "refuses messages of user"),
    ],
)
def test_a_chat_template_that_cannot_be_followed_is_refused(tokenizers, template, sentence):
    tokenizer = with_chat(tokenizers, "chatml")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=sentence):
        encode(CHAT, tokenizer, ("a", "b"))


def test_dates_of_templates_do_not_change_from_day_to_day(chats):
    prompt, _ = parts(encode(CHAT, chats["dated"], ("a", "b")))
    assert "26 Jul 20242024" in chats["dated"].decode(prompt)


# -- columns of messages -----------------------------------------------------------------------------------------------


def test_messages_of_both_forms_read_alike():
    openai = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "b"},
    ]
    sharegpt = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read_messages(openai) == read_messages(sharegpt) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert read_messages([*openai, {"role": "user", "content": "more"}]) == read_messages(openai)
    assert from_text(as_text(read_messages(openai))) == read_messages(openai)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("hello", "is not a list of messages but str 'hello'"),
        ([], "has no answer of the assistant"),
        ([{"role": "user", "content": "a"}], "has no answer of the assistant"),
        (
            [{"role": "assistant", "content": "a"}],
            "has messages of assistant, where user and assistant have to take turns",
        ),
        (
            [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}],
            "of user, user, assistant, where",
        ),
        ([{"role": "user", "content": " "}], "has a message, number 1, that has not text but ' '"),
        ([{"role": "user", "content": [{"type": "image"}]}], "number 1, that has not text but"),
        ([{"role": "tool", "content": "a"}], "number 1, that is of 'tool', who is neither user, assistant nor system"),
        ([{"text": "a"}], "number 1, that has neither role and content nor from and value"),
        ([{"role": "user", "content": "\ud800"}], "half of a surrogate pair"),
    ],
)
def test_what_is_no_dialogue_is_said_in_words(value, sentence):
    assert sentence in read_messages(value)
