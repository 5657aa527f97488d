"""All answers of a dialogue: their tokens are those of transformers' own assistant mask, and their loss its own."""

import numpy as np
import pytest
import torch
from chat_styles import CHATML, DATED, STYLES, THINKING, with_chat
from support import sweep
from test_chat import DIALOGUE, own_ids, said
from test_responses import encode
from transformers import LlamaConfig, LlamaForCausalLM

from fedsim.core.errors import ModelError
from fedsim.data.dialogue import as_text

ALL = DIALOGUE.model_copy(update={"learn": "all_answers"})
TURNS = [
    ("system", "be kind"),
    ("user", "great"), ("assistant", "war it was"),
    ("user", "why\nnot"), ("assistant", "user great"),
    ("user", "it"), ("assistant", "was, ü"),
]  # fmt: skip
GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
)
MARKED = (
    GENERATION + "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with marks that leave out the line break behind an answer."""
ORACLES = {
    "chatml": GENERATION + "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}",
    "thinking": THINKING.replace(
        "{{ message.content + '<|im_end|>\n' }}",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>\n' }}{% endif %}",
    ),
    "dated": DATED.replace(
        "message['role'] + '\n' + message['content'] | trim + '<|im_end|>' }}",
        "message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}",
    ),
}
"""The same templates with marks around what is learned."""
ORACLES["plain_ends"] = ORACLES["chatml"]


@pytest.fixture(scope="module")
def chats(tokenizers):
    return {style: with_chat(tokenizers, style) for style in STYLES}


def learned(tokenizer, turns=TURNS, **keys):
    """Return the ids of a dialogue, and which of them are learned."""
    table = encode(ALL, tokenizer, (as_text(turns),), **keys)
    return table.ids_Z.tolist(), table.learned_Z.tolist()


def theirs(tokenizer, template, turns=TURNS):
    """Return transformers' ids of a dialogue and its assistant mask."""
    found = tokenizer.apply_chat_template(
        said(*turns), chat_template=template.replace("strftime_now('%Y')", "'2024'"), return_dict=True,
        return_assistant_tokens_mask=True, enable_thinking=False, date_string="26 Jul 2024",
    )  # fmt: skip
    return list(found["input_ids"]), list(found["assistant_masks"])


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[:3]], ids=["system", "plain", "one"])
@pytest.mark.parametrize("style", ORACLES)
def test_learned_tokens_are_those_of_transformers_assistant_mask(chats, style, turns):
    ids, mask = learned(chats[style], turns)
    assert (ids, mask) == theirs(chats[style], ORACLES[style], turns)
    assert ids == own_ids(chats[style], said(*turns)) and 0 < sum(mask) < len(mask)


def test_a_template_with_marks_of_its_own_is_followed(tokenizers):
    tokenizer = with_chat(tokenizers, "chatml")
    tokenizer.chat_template = MARKED
    found = learned(tokenizer)
    assert found == theirs(tokenizer, MARKED)
    assert sum(found[1]) == sum(learned(with_chat(tokenizers, "chatml"))[1]) - 3


@pytest.mark.parametrize("style", STYLES)
def test_each_answer_is_learned_with_its_end_and_the_last_as_it_is_alone(chats, style):
    tokenizer = chats[style]
    table = encode(ALL, tokenizer, (as_text(TURNS),))
    alone = encode(DIALOGUE, tokenizer, (as_text(TURNS),))
    assert table.ids_Z.tolist() == alone.ids_Z.tolist() and alone.learned_Z is None
    start = int(alone.response_starts_N[0])
    assert table.response_starts_N.tolist() == [start]
    assert table.learned_Z[start:].all() and table.learned_Z[start - 1] == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], table.learned_Z, [0]]))).reshape(-1, 2)
    texts = [tokenizer.decode(table.ids_Z[slice(*edge)]) for edge in edges]
    answers = [text for role, text in TURNS if role == "assistant"]
    assert len(texts) == 3 and not table.learned_Z[: edges[0, 0]].any()
    if style != "inst":
        assert [text.strip() for text in texts] == [f"{text}<|im_end|>" for text in answers]
    for edge, text in zip(edges, answers, strict=True):
        own = encode(DIALOGUE, tokenizer, (as_text([("user", "great"), ("assistant", text)]),))
        assert table.ids_Z[slice(*edge)].tolist() == own.ids_Z[own.response_starts_N[0] :].tolist()
    assert table.responses_N.tolist() == [int(table.learned_Z.sum())]


def test_the_loss_is_that_of_transformers_with_other_labels_left_out(chats):
    tokenizer = chats["thinking"]
    rows = [TURNS, TURNS[1:5], TURNS[:3]]
    table = encode(ALL, tokenizer, *[(as_text(turns),) for turns in rows])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).double().eval()
    batch = table.batch(np.array([2, 0, 1]))
    ids, mask = torch.from_numpy(batch.input_ids_BT), torch.from_numpy(batch.attention_mask_BT)
    labels = torch.full_like(ids, -100)
    for row, turns in enumerate((rows[2], rows[0], rows[1])):
        own = torch.tensor(theirs(tokenizer, ORACLES["thinking"], turns)[1]).bool()
        labels[row, : len(own)][own] = ids[row, : len(own)][own]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    reads = batch.reads
    logp = logits[torch.from_numpy(reads.rows_U[reads.read_R])].log_softmax(1)
    ours = -logp[torch.arange(len(logp)), torch.from_numpy(reads.targets_R)].mean()
    torch.testing.assert_close(ours.float(), expected.float(), rtol=1e-5, atol=1e-6)
    assert len(logp) == table.responses_N.sum() and np.bincount(reads.groups_R).tolist() == [
        int(table.responses_N[i]) for i in (2, 0, 1)
    ]


@pytest.mark.parametrize("style", sweep(STYLES, ["chatml"]))
def test_turns_that_do_not_fit_are_left_out_whole_and_counted(chats, style):
    turns = TURNS[1:]
    fits = own_ids(chats[style], said(*turns[2:]))
    table = encode(ALL, chats[style], (as_text(turns),), max_length=len(fits))
    short = encode(ALL, chats[style], (as_text(turns[2:]),))
    assert table.ids_Z.tolist() == fits and table.learned_Z.tolist() == short.learned_Z.tolist()
    assert (table.cut_answers, table.cut_prompts, short.cut_answers) == (1, 1, 0)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            CHATML.replace("'<|im_end|>'", "('<|im_end|>' if loop.last or message.role == 'user' else '<|im_start|>')"),
            "does not end earlier answers with the token that ends the last one",
        ),
        (
            CHATML.replace("message['role']", "(message['role'] if loop.last or loop.index0 % 2 == 0 else 'then')"),
            "does not write earlier answers behind its generation prompt",
        ),
        (MARKED.replace("{% if message['role'] == 'assistant' %}", "{% if loop.last %}"), "around something else than each"),
    ],
)  # fmt: skip
def test_a_template_whose_earlier_answers_cannot_be_told_apart_is_refused(tokenizers, template, sentence):
    tokenizer = with_chat(tokenizers, "chatml")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=f"{sentence}.*set data.task.learn=last_answer, or use a tokenizer"):
        learned(tokenizer, TURNS[1:])
    assert encode(DIALOGUE, tokenizer, (as_text(TURNS[1:]),)).learned_Z is None
