import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fedsim.core.errors import DataError, ModelError
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.label_words import label_words
from fedsim.data.several import encode_several
from fedsim.data.tasks import TASKS
from fedsim.data.templates import parse_template
from fedsim.data.tokenize import pad_id, tokenize
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
    masks = label_words(task, tokenizer, False).num_masks
    assert (masks > 1) == (name == "trec" and style == "roberta")  # whose words have no space before them there
    text = task.template.replace("<mask>", tokenizer.mask_token * masks)
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
    masks = label_words(task, tokenizer, False).num_masks
    for i in range(len(rows)):
        ids, position = ids_of(table, i), int(table.read_positions_N[i])
        assert len(ids) <= max_length
        assert ids[position : position + masks] == [tokenizer.mask_token_id] * masks
        assert ids.count(tokenizer.mask_token_id) == masks
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
    ids_C = label_words(TASKS["sst2"], tokenizers[style], style in CAUSAL).single_C
    assert ids_C.dtype == np.int64
    assert tokenizers[style].convert_ids_to_tokens(ids_C.tolist()) == expected


@pytest.mark.parametrize("style", ["roberta", "gpt2"])
def test_label_words_follow_the_place_of_the_mask(tokenizers, style):
    tokenizer = tokenizers[style]
    causal = style in CAUSAL
    near = TaskConfig(name="n", fields=("t",), labels=("0", "1"), label_words=("0", "1"), template="{t} (<mask>)")
    start = near.model_copy(update={"template": "<mask> : {t}"})
    assert tokenizer.convert_ids_to_tokens(label_words(near, tokenizer, causal).single_C.tolist()) == ["0", "1"]
    if causal:  # a decoder answers after the colon, so after a space, which these tokens lack
        words = [tokenizer.convert_ids_to_tokens(word) for word in label_words(start, tokenizer, causal).words]
        assert words == [["Ġ", "0"], ["Ġ", "1"]]
    else:
        assert tokenizer.convert_ids_to_tokens(label_words(start, tokenizer, causal).single_C.tolist()) == ["0", "1"]


@pytest.mark.parametrize(
    ("style", "change", "sentence"),
    [
        (
            "bert",
            {"label_words": ("great", "☃")},
            r"'☃'.* is not known to this tokenizer, whose tokens are \['\[UNK\]'\]",
        ),
        ("bert", {"label_words": ("great", "great ☃")}, r"'great ☃'.* is not known to this tokenizer, whose"),
        ("bert", {"label_words": ("yes", "Yes")}, r"'yes' and 'Yes' are the same token 'yes' of this tokenizer"),
        ("bert", {"label_words": (("yes", "no"), "No")}, r"'no' and 'No' are the same token 'no' of this tokenizer"),
        ("bert", {"label_words": ("not great", "Not  great")}, r"are the same tokens \[.*'great'\] of this tokenizer"),
        ("llama", {"label_words": ("great", "")}, r"'', written ' ' in the template, is not known to this tokenizer"),
        (
            "gpt2",
            {"template": "{text} gre<mask>", "label_words": ("at film", "no")},
            r"'at film'.* is put together with the text before",
        ),
        ("bert", {"word_end": " ."}, r"data\.task\.word_end: ' \.' stands behind a word that a decoder writes"),
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
        label_words(task, tokenizers[style], style in CAUSAL)


def test_an_end_token_is_one_that_the_tokenizer_has(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["gpt2"])
    tokenizer.eos_token = None
    task = TASKS["sst2"].model_copy(update={"word_end": " . <eos>"})
    with pytest.raises(
        DataError, match=r"data\.task\.word_end: ' \. <eos>' has <eos>, but this tokenizer has no end token"
    ):
        label_words(task, tokenizer, causal=True)


# -- words of several tokens, several words a class --------------------------------------------------------------------

WORDY = TaskConfig(
    name="wordy",
    fields=("text",),
    template="{text} . It was <mask> .",
    labels=("0", "1", "2"),
    label_words=("not great", ("great", "acceptable film"), "marvellous"),
)


def words_of(task, tokenizer, causal):
    """Return each class's words as the tokenizer itself writes them behind the template's last word."""
    end = task.word_end or ""
    written = [[f"was {word}{end.removesuffix('<eos>')}" for word in own] for own in task.words_of_classes]
    closing = [tokenizer.eos_token_id] if end.endswith("<eos>") else []
    before = len(plain(tokenizer, "was"))
    return [[plain(tokenizer, text)[before:] + closing for text in own] for own in written]


@pytest.mark.parametrize("end", [None, " .", " . <eos>"])
@pytest.mark.parametrize("style", CAUSAL)
def test_a_decoders_branches_are_its_words_as_written_behind_the_text(tokenizers, style, end):
    """Every way from the trunk's end down the tree is a word without its last token; that each has the rest to predict."""
    tokenizer, task = tokenizers[style], WORDY.model_copy(update={"word_end": end})
    row = ("a great film about the war",)
    table, text = encode([row], task, tokenizer, causal=True), encode([row], TASKS["sst2"], tokenizer, causal=True)
    expected = words_of(task, tokenizer, True)
    assert [list(word) for word in table.words.words] == [word for own in expected for word in own]
    assert table.words.classes_W.tolist() == [0, 1, 1, 2]
    assert max(map(len, table.words.words)) > 2
    assert ids_of(table.trunks) == ids_of(text) == ids_of(table)[: -len(table.branches)]
    assert table.read_positions_N[0] == text.read_positions_N[0]
    for seen_Y in table.branches.sees_YY:
        path = table.branches.ids_Y[seen_Y].tolist()
        assert any(word[: len(path)] == path and len(word) > len(path) for own in expected for word in own)
    starts = {tuple(word[:size]) for own in expected for word in own for size in range(1, len(word))}
    assert len(starts) == len(table.branches)
    packed = table.pack(np.zeros(1, np.int64))
    for read, target, group in zip(packed.reads.read_R, packed.reads.targets_R, packed.reads.groups_R, strict=True):
        node = packed.reads.rows_U[read] - len(ids_of(text))
        path = [] if node < 0 else table.branches.ids_Y[table.branches.sees_YY[node]].tolist()
        assert (*path, target) == table.words.words[group][: len(path) + 1]


@pytest.mark.parametrize("style", MASKED)
def test_an_encoder_has_as_many_masks_as_the_longest_word_has_tokens(tokenizers, style):
    tokenizer = tokenizers[style]
    table = encode([("a great film",)], WORDY, tokenizer)
    expected = words_of(WORDY, tokenizer, False)
    longest = max(len(word) for own in expected for word in own)
    ids, first = ids_of(table), int(table.read_positions_N[0])
    assert longest > 1 and table.branches is None
    assert ids == tokenizer(f"a great film . It was {tokenizer.mask_token * longest} .")["input_ids"]
    assert ids[first : first + longest] == [tokenizer.mask_token_id] * longest
    reads = table.pack(np.zeros(1, np.int64)).reads
    assert reads.rows_U.tolist() == list(range(first, first + longest))
    assert reads.read_R.tolist() == [place for own in expected for word in own for place in range(len(word))]
    assert reads.targets_R.tolist() == [token for own in expected for word in own for token in word]


@pytest.mark.parametrize("style", [*MASKED, *CAUSAL])
def test_words_of_one_token_and_one_word_a_class_add_nothing(tokenizers, style):
    """Lists of one word are words; the table is the one without them, and several words of one token add no token."""
    causal = style in CAUSAL
    lists = TASKS["sst2"].model_copy(update={"label_words": (("terrible",), ("great",))})
    several = TASKS["sst2"].model_copy(update={"label_words": ("terrible", ("great", "acceptable"))})
    plain_table, listed_table, table = (
        encode([("a great film",)], task, tokenizers[style], causal=causal) for task in (TASKS["sst2"], lists, several)
    )
    assert plain_table.words is None and listed_table.words is None
    assert table.words is not None and table.branches is None
    assert ids_of(plain_table) == ids_of(listed_table) == ids_of(table)


@pytest.mark.parametrize("style", [*MASKED, *CAUSAL])
def test_the_longest_word_fits_beside_a_text_that_is_cut(tokenizers, style):
    tokenizer, causal = tokenizers[style], style in CAUSAL
    table = encode([("film " * 50,), ("film",)], WORDY, tokenizer, causal=causal, max_length=24)
    depth = 0 if table.branches is None else int(table.branches.depths_Y.max())
    assert table.longest == 24
    assert len(ids_of(table.trunks)) + depth == 24


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
