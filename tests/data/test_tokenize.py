import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fedsim.core.errors import DataError, ModelError
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.several import encode_several
from fedsim.data.tasks import TASKS
from fedsim.data.templates import parse_template
from fedsim.data.tokenize import label_word_ids, pad_id, tokenize
from fedsim.data.truncation import longest_first

MASKED, CAUSAL = ("roberta", "bert"), ("gpt2", "llama")
some = settings(max_examples=25, deadline=None)
letters = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"))
words = st.lists(st.text(letters, min_size=1, max_size=9), min_size=1, max_size=6).map(" ".join)
hostile = st.lists(
    st.sampled_from(
        [
            "<mask>",
            "[MASK]",
            "</s>",
            "<s>",
            "[SEP]",
            "<|endoftext|>",
            "{text}",
            "{a}",
            "{",
            "\x00",
            "\n",
            "\u200b",
            "good ",
            "é",
        ]
    ),
    min_size=1,
    max_size=8,
).map(lambda parts: "x" + "".join(parts))
texts = words | hostile


def examples(*rows, labels=None):
    return Examples(list(rows), np.asarray(labels or [0] * len(rows), np.int64), origin="somewhere")


def encode(rows, task, tokenizer, head_kind="verbalizer", causal=False, max_length=32):
    return tokenize(examples(*rows), task, tokenizer, head_kind=head_kind, causal=causal, max_length=max_length)


def ids_of(table, i=0):
    return table.ids_Z[table.offsets_N1[i] : table.offsets_N1[i + 1]].tolist()


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rows_of(task, draw_text):
    return st.lists(st.tuples(*[draw_text] * len(task.fields)), min_size=1, max_size=4)


@pytest.mark.parametrize("style", MASKED)
@pytest.mark.parametrize("name", ["sst2", "trec", "rte"])
def test_short_examples_are_the_tokenizers_own_encoding_of_the_filled_template(tokenizers, style, name):
    tokenizer, task = tokenizers[style], TASKS[name]
    row = ("a great film", "It was")[: len(task.fields)]
    text = task.template.replace("<mask>", tokenizer.mask_token)
    for field, value in zip(task.fields, row, strict=True):
        text = text.replace("{" + field + "}", value)
    ids = ids_of(encode([row], task, tokenizer))
    assert ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("sst2", "X . It was"), ("rte", "Y , X ?"), ("trec", "X :")],
    ids=["tail", "pair", "leading mask"],
)
@pytest.mark.parametrize("style", CAUSAL)
def test_a_decoder_reads_all_fields_and_ends_where_the_word_belongs(tokenizers, style, name, text):
    tokenizer, task = tokenizers[style], TASKS[name]
    row = ("a great film", "the people fight")[: len(task.fields)]
    table = encode([row], task, tokenizer, causal=True)
    assert ids_of(table) == tokenizer(text.replace("X", row[0]).replace("Y", row[-1]))["input_ids"]
    assert table.read_positions_N[0] == len(ids_of(table)) - 1


@pytest.mark.parametrize(
    ("template", "before"),
    [
        ("<mask> : {a} , {b} !", "{a} , {b} : "),
        ("{a}<mask>{b}", "{b} {a}"),
        ("Say <mask> to {a} and {b}", "{a} and {b} to Say "),
        ("{a} and {b} are <mask> ( really )", "{a} and {b} are "),
    ],
)
def test_causal_form_of_other_templates(template, before):
    task = TASKS["rte"].model_copy(update={"template": template})
    causal = parse_template(task).as_causal()
    shown = "".join(
        piece if isinstance(piece, str) else "{" + task.fields[piece.index] + "}" for piece in causal.before
    )
    assert (shown, causal.after) == (before, ())


@some
@given(data=st.data())
@pytest.mark.parametrize("name", ["sst2", "trec", "rte"])
@pytest.mark.parametrize("style", MASKED)
def test_the_mask_stays_and_is_alone_whatever_the_text(tokenizers, style, name, data):
    tokenizer, task = tokenizers[style], TASKS[name]
    rows = data.draw(rows_of(task, texts))
    max_length = data.draw(st.integers(12, 40))
    table = encode(rows, task, tokenizer, max_length=max_length)
    cue = plain(tokenizer, parse_template(task).cue.rstrip())
    for i in range(len(rows)):
        ids, position = ids_of(table, i), int(table.read_positions_N[i])
        assert len(ids) <= max_length
        assert ids[position] == tokenizer.mask_token_id
        assert ids.count(tokenizer.mask_token_id) == 1
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert not {tokenizer.cls_token_id, tokenizer.sep_token_id} & set(ids[1:-1])
        assert ids[position - len(cue) : position] == cue


@some
@given(data=st.data())
@pytest.mark.parametrize("name", ["sst2", "trec", "rte"])
@pytest.mark.parametrize("style", CAUSAL)
def test_a_decoder_always_ends_with_the_cue(tokenizers, style, name, data):
    tokenizer, task = tokenizers[style], TASKS[name]
    rows = data.draw(rows_of(task, texts))
    max_length = data.draw(st.integers(12, 40))
    table = encode(rows, task, tokenizer, causal=True, max_length=max_length)
    cue = {"sst2": "x . It was", "trec": "x :", "rte": "x ?"}[name]
    ending = plain(tokenizer, cue)[len(plain(tokenizer, "x")) :]
    for i in range(len(rows)):
        ids = ids_of(table, i)
        assert len(ids) <= max_length
        assert ids[-len(ending) :] == ending
        assert tokenizer.eos_token_id not in ids
        assert table.read_positions_N[i] == len(ids) - 1


@some
@given(data=st.data())
@pytest.mark.parametrize("name", ["sst2", "rte"])
@pytest.mark.parametrize("style", MASKED + CAUSAL)
def test_classifier_encodings_are_the_tokenizers_own(tokenizers, style, name, data):
    tokenizer, task = tokenizers[style], TASKS[name]
    rows = data.draw(rows_of(task, texts))
    max_length = data.draw(st.integers(8, 40))
    table = encode(rows, task, tokenizer, "classifier", style in CAUSAL, max_length)
    for i, row in enumerate(rows):
        own = tokenizer(
            *[text.strip() for text in row],
            truncation="longest_first",
            max_length=max_length,
            split_special_tokens=True,
        )
        assert tokenizer.mask_token_id not in own["input_ids"]
        assert ids_of(table, i) == own["input_ids"]
        assert table.read_positions_N[i] == len(own["input_ids"]) - 1
        if style == "bert" and name == "rte":
            assert table.type_ids_Z[table.offsets_N1[i] : table.offsets_N1[i + 1]].tolist() == own["token_type_ids"]
        else:
            assert table.type_ids_Z is None


def test_only_the_ends_of_texts_are_cut_longest_first(tokenizers):
    tokenizer = tokenizers["bert"]
    long, short = " ".join(["film"] * 50), "great people"
    for row in ((long, short), (short, long)):
        table = encode([row], TASKS["rte"], tokenizer, max_length=20)
        kept = tokenizer.convert_ids_to_tokens(ids_of(table))
        literal = ["[CLS]", "?", "[MASK]", ",", "[SEP]"]
        cut = [" ".join(["film"] * 13) if text == long else text for text in row]
        assert kept == [literal[0], *cut[0].split(), *literal[1:4], *cut[1].split(), literal[4]]


def test_a_text_longer_than_the_model_leaves_no_room_only_if_the_template_fills_it(tokenizers):
    task = TASKS["sst2"].model_copy(update={"template": "{text} . " + "It was " * 10 + "<mask> ."})
    with pytest.raises(DataError, match=r"data\.max_length: 12 tokens leave no room for the text of somewhere"):
        encode([("great",)], task, tokenizers["bert"], max_length=12)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(0, 60))
def test_longest_first_gives_up_one_at_a_time(lengths, room):
    expected = list(lengths)
    while sum(expected) > room:
        longest = max(range(len(expected)), key=lambda i: (expected[i], i))
        expected[longest] -= 1
    assert longest_first(lengths, room) == expected


def test_labels_and_padding(tokenizers):
    data = examples(("great",), ("a film",), labels=[1, 0])
    for style, tokenizer in tokenizers.items():
        table = tokenize(data, TASKS["sst2"], tokenizer, head_kind="classifier", causal=style in CAUSAL, max_length=16)
        assert table.labels_N.tolist() == [1, 0]
        size = len(tokenizer)
        assert table.pad_id == pad_id(tokenizer) < size
        assert len(tokenizer) == size
    assert pad_id(tokenizers["gpt2"]) == tokenizers["gpt2"].eos_token_id
    assert pad_id(tokenizers["roberta"]) == tokenizers["roberta"].pad_token_id


@pytest.mark.parametrize("head_kind", ["verbalizer", "classifier"])
def test_no_examples_give_an_empty_table(tokenizers, head_kind):
    assert len(encode([], TASKS["rte"], tokenizers["bert"], head_kind)) == 0


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("roberta", ["Ġterrible", "Ġgreat"]),
        ("gpt2", ["Ġterrible", "Ġgreat"]),
        ("llama", ["▁terrible", "▁great"]),
        ("bert", ["terrible", "great"]),
    ],
)
def test_label_words_after_a_space_start_a_word(tokenizers, style, expected):
    ids_C = label_word_ids(TASKS["sst2"], tokenizers[style], style in CAUSAL)
    assert ids_C.dtype == np.int64
    assert tokenizers[style].convert_ids_to_tokens(ids_C.tolist()) == expected


@pytest.mark.parametrize("style", ["roberta", "gpt2"])
def test_label_words_follow_the_place_of_the_mask(tokenizers, style):
    tokenizer = tokenizers[style]
    causal = style in CAUSAL
    near = TaskConfig(name="n", fields=("t",), labels=("0", "1"), label_words=("0", "1"), template="{t} (<mask>)")
    start = near.model_copy(update={"template": "<mask> : {t}"})
    assert tokenizer.convert_ids_to_tokens(label_word_ids(near, tokenizer, causal).tolist()) == ["0", "1"]
    if causal:  # a decoder answers after the colon, so after a space, which these tokens lack
        with pytest.raises(DataError, match="'0', written ' 0' in the template, is not one known token"):
            label_word_ids(start, tokenizer, causal)
    else:
        assert tokenizer.convert_ids_to_tokens(label_word_ids(start, tokenizer, causal).tolist()) == ["0", "1"]


@pytest.mark.parametrize(
    ("style", "change", "sentence"),
    [
        (
            "roberta",
            {"label_words": ("great", "marvellous")},
            r"label_words: 'marvellous', written ' marvellous' in the",
        ),
        (
            "bert",
            {"label_words": ("great", "marvellous")},
            r"'marvellous'.* is not one known token of this tokenizer but \[",
        ),
        ("bert", {"label_words": ("great", "☃")}, r"'☃'.* is not one known token of this tokenizer but \['\[UNK\]'\]"),
        ("bert", {"label_words": ("yes", "Yes")}, r"'yes' and 'Yes' are the same token 'yes' of this tokenizer"),
        ("llama", {"label_words": ("great", "")}, r"'', written ' ' in the template, is not one known token"),
        (
            "gpt2",
            {"label_words": None},
            r"data\.task\.label_words: task 'sst2' has no label words.*one word for each of 0, 1",
        ),
        ("gpt2", {"template": None}, r"data\.task\.template: task 'sst2' has no template.*<mask> and \{text\}"),
    ],
)
def test_label_words_that_do_not_work_are_named(tokenizers, style, change, sentence):
    task = TASKS["sst2"].model_copy(update=change)
    with pytest.raises(DataError, match=sentence):
        label_word_ids(task, tokenizers[style], style in CAUSAL)


def test_a_verbalizer_needs_a_template_and_a_mask_token(tokenizers):
    task = TASKS["sst2"].model_copy(update={"template": None})
    with pytest.raises(DataError, match=r"data\.task\.template"):
        encode([("great",)], task, tokenizers["bert"])
    with pytest.raises(ModelError, match="has no mask token"):
        encode([("great",)], TASKS["sst2"], tokenizers["gpt2"])


def test_a_text_without_any_token_is_refused():
    letters = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])))
    assert ids_of(encode([("ab",)], TASKS["sst2"], letters, "classifier")) == [0, 1]
    with pytest.raises(DataError, match=r"somewhere: the text \('z',\) yields no token with this tokenizer"):
        encode([("ab",), ("z",)], TASKS["sst2"], letters, "classifier")


THREE = TaskConfig(
    name="choice", fields=("premise", "one", "two"), template="{two} or {one} ? {premise} <mask>", labels=("0", "1")
)
SAID = [("a great war", "it is", "yes , it was"), ("No , it is not", "a film", "people fight <mask>")]
AROUND = {
    "roberta": ([["<s>"], ["</s>", "</s>"], ["</s>"]]),
    "bert": ([["[CLS]"], ["[SEP]"], ["[SEP]"]]),
    "gpt2": ([[], [], []]),
    "llama": ([["<s>"], ["<s>"], []]),
}


@pytest.mark.parametrize("style", MASKED + CAUSAL)
def test_three_texts_go_on_as_a_pair_does(tokenizers, style):
    tokenizer = tokenizers[style]
    table = encode(SAID, THREE, tokenizer, "classifier", style in CAUSAL, 128)
    start, between, stop = (tokenizer.convert_tokens_to_ids(tokens) for tokens in AROUND[style])
    for i, row in enumerate(SAID):
        premise, one, two = (
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in row
        )
        assert ids_of(table, i) == [*start, *premise, *between, *one, *between, *two, *stop]
        if style == "bert":
            first = 2 + len(premise)
            types = table.type_ids_Z[table.offsets_N1[i] : table.offsets_N1[i + 1]]
            assert types.tolist() == [0] * first + [1] * (len(types) - first)
    if style != "bert":
        assert table.type_ids_Z is None
    # The same code on two texts gives what the tokenizer makes of a pair.
    pair = [row[:2] for row in SAID]
    columns = [list(column) for column in zip(*pair, strict=True)]
    own = tokenizer(*columns, split_special_tokens=True)
    assert encode_several(columns, tokenizer, 128, "")[0] == own["input_ids"]


@pytest.mark.parametrize("head", ["classifier", "verbalizer"])
@pytest.mark.parametrize("style", MASKED + CAUSAL)
def test_three_texts_are_cut_longest_first(tokenizers, style, head):
    long = [("a great war " * 50, "it is", "yes , it was " * 30)]
    table = encode(long, THREE, tokenizers[style], head, style in CAUSAL, 40)
    assert table.lengths_N.tolist() == [40]
    assert "it is" in " ".join(tokenizers[style].decode(ids_of(table)).replace("▁", " ").split())


def test_three_texts_without_room_are_refused(tokenizers):
    five = TaskConfig(name="five", fields=tuple("abcde"), labels=("0", "1"))
    with pytest.raises(
        DataError, match=r"8 tokens leave no room for the 5 texts of somewhere, since special tokens take 10"
    ):
        encode([("x",) * 5], five, tokenizers["roberta"], "classifier", False, 8)
