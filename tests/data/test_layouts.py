"""The files that people download, in small copies with sentences of our own (layouts/), and those of ../shared/cases."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from fedsim.configuration.schema import build_config, read_config
from fedsim.core.errors import DataError
from fedsim.data.config import DataConfig
from fedsim.data.sources import load_dataset
from fedsim.simulation.preparation import partition_data

LAYOUTS = Path(__file__).parent / "layouts"
CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"

FIRST = "the soup was cold and so was the cook"
HELD_OUT = "20% of the examples, drawn with the seed, are held out for validation"
NO_HEADER = "without header, columns label, text"

BUILT_IN = [
    ("sst2", "glue", 8, 2, (FIRST + " ",), 0, "columns text='sentence'"),
    ("sst2", "glue/SST-2", 8, 2, (FIRST + " ",), 0, "columns text='sentence'"),
    (
        "mrpc", "glue", 4, 2, ('He said , "the bridge will open in May .', "The bridge opens in May , he said ."), 1,
        "columns a='#1 String', b='#2 String', label='Quality'",
    ),
    (
        "rte", "glue", 4, 2, ('"A red boat lies in the harbour" , she wrote .', "A boat is in the harbour ."), 0,
        "columns a='sentence1', b='sentence2'",
    ),
    ("rte", "superglue_rte", 2, 1, ("Ann sold her shop.", "Ann had a shop."), 0, "columns a='premise', b='hypothesis'"),
    (
        "qnli", "glue", 4, 2, ("When was the tower built ?", "The tower was built in 1790 ."), 0,
        "columns a='question', b='sentence'",
    ),
    ("cola", "glue", 4, 2, ("The baker sold the bread .",), 1, "without header, columns source, label, star, text"),
    ("boolq", "glue", 3, 1, ("is the sea salty", "Sea water holds salt."), 1, "columns a='question', b='passage'"),
    (
        "boolq", "boolq_answers", 2, 1, ("is the sea salty", "Sea water holds salt."), 1,
        "columns a='question', b='passage', label='answer'",
    ),
    ("mr", "lmbff", 8, 2, (FIRST,), 0, NO_HEADER),
    ("subj", "lmbff", 8, 2, (FIRST,), 0, NO_HEADER),
    ("mpqa", "lmbff/mpqa", 8, 2, (FIRST,), 0, NO_HEADER),
    ("trec", ".", 6, 2, ("How is glass made ?",), 0, "TREC's COARSE:fine text; latin-1"),
    ("mr", ".", 6, 2, (FIRST,), 0, f"latin-1; the file is the class (rt-polarity.neg=0, rt-polarity.pos=1); {HELD_OUT}"),
    (
        "subj", ".", 8, 2, ("a warm and funny film",), 0,
        f"the file is the class (quote.tok.gt9.5000=0, plot.tok.gt9.5000=1); {HELD_OUT}",
    ),
    ("mpqa", "senteval", 8, 2, ("complained",), 0, f"the file is the class (mpqa.neg=0, mpqa.pos=1); {HELD_OUT}"),
    ("sent140", ".", 6, 2, (FIRST,), 0, "without header, columns label, id, date, query, user, text; latin-1"),
    ("sent140", "leaf", 6, 2, ("so cold",), 0, "LEAF's JSON; columns text='4', label='y'"),
    ("sst2", "hub", 8, 2, (FIRST,), 0, "columns text='sentence'"),
    ("sst2", "hub_data", 8, 2, (FIRST,), 0, "data/test-00000-of-00001.parquet in"),
    ("sst2", "saved", 8, 2, (FIRST,), 0, "train/data-00000-of-00002.arrow (and 1 more) and validation/data-00000"),
]  # fmt: skip
"""Task, path, training and validation examples, texts and class of the first, and what the note says."""


def load(path, task, seed=0, column=None, **keys):
    return load_dataset(DataConfig(task=task, path=str(path), **keys), seed, column)


@pytest.mark.parametrize(
    ("task", "path", "train", "validation", "first", "label", "note"),
    BUILT_IN,
    ids=[f"{t}-{p}" for t, p, *_ in BUILT_IN],
)
def test_a_built_in_task_reads_the_usual_layouts_and_says_which(task, path, train, validation, first, label, note):
    dataset = load(LAYOUTS / path, task)
    assert (len(dataset.train), len(dataset.validation)) == (train, validation)
    (said,) = dataset.notes
    assert note in said
    texts, labels = dataset.train.texts, dataset.train.labels_N.tolist()
    if HELD_OUT in note:  # the first may be held out
        texts, labels = texts + dataset.validation.texts, labels + dataset.validation.labels_N.tolist()
    assert labels[texts.index(first)] == label
    assert len(set(labels)) == len(dataset.task.labels)


SHARED = [
    *((task, "glue_raw") for task in ("sst2", "mrpc", "rte", "qnli", "cola", "boolq")),
    *((task, "lmbff") for task in ("mr", "subj", "mpqa")),
    *((task, "raw_latin1") for task in ("mr", "subj", "trec")),
    *(("sent140", path) for path in ("sent140", "leaf", ".")),
    *(("sst2", path) for path in ("saved_to_disk_text", "hub_flat", "hub_layout", "long_csv")),
]


@pytest.mark.parametrize(("task", "path"), SHARED)
def test_the_layouts_of_shared_cases_are_dealt_out_without_further_keys(task, path):
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    config = build_config({"data": {"task": task, "path": str(CASES / path)}, "partition": {"clients": 20}, "seed": 0})
    data = partition_data(config)
    assert data.shards.num_clients == 20
    assert len(set(data.dataset.validation.labels_N)) == len(data.task.labels)


def test_latin_1_is_decoded_as_such_and_utf_8_as_utf_8(tmp_path):
    assert ("Who owns the café on the corner ?",) in load(LAYOUTS, "trec").train.texts
    held = load(LAYOUTS, "mr")
    assert {("naïve , but good",), ("a cliché of a film",)} <= {*held.train.texts, *held.validation.texts}
    for name in ("rt-polarity.pos", "rt-polarity.neg"):
        text = (LAYOUTS / "rt-polaritydata" / name).read_text(encoding="latin-1")
        (tmp_path / name).write_text(text, encoding="utf-8")
    other = load(tmp_path, "mr")
    assert other.train.texts == held.train.texts
    assert "latin-1" not in other.notes[0]


@pytest.mark.parametrize(
    ("path", "sizes"), [("sent140", {"kim": 3, "lee": 2, "zoe": 1}), ("leaf", {"kim": 2, "lee": 1, "zoe": 3})]
)
def test_users_are_natural_clients(path, sizes):
    values = {"partition": {"kind": "by_column", "column": "user"}, "sampling": {"clients_per_round": 2}}
    data = partition_data(build_config({"data": {"task": "sent140", "path": str(LAYOUTS / path)}, **values}))
    assert Counter(data.dataset.train.columns["user"]) == sizes
    assert data.shards.sizes.tolist() == list(sizes.values())
    assert data.notes[-1] == "partition.clients is not given: all 3 values of partition.column 'user' are clients"


def test_what_is_held_out_is_drawn_with_the_seed_and_never_trained_on():
    texts = lambda dataset: (dataset.train.texts, dataset.validation.texts)  # noqa: E731
    path = LAYOUTS / "rotten_imdb"
    one, again, other = (texts(load(path, "subj", seed)) for seed in (3, 3, 4))
    assert one == again != other
    assert not set(one[0]) & set(one[1])
    assert sorted(one[0] + one[1]) == sorted(other[0] + other[1])
    half = load(path, "subj", holdout=0.5)
    assert (len(half.train), len(half.validation)) == (5, 5)
    assert "50% of the examples, drawn with the seed, are held out for validation (data.holdout)" in half.notes[0]


def test_no_data_are_validated_on_that_are_trained_on_without_a_word():
    with pytest.raises(
        DataError, match=r"dev\.tsv: would be used for both training and validation; name another file in data\.val"
    ):
        load(LAYOUTS / "glue", "sst2", train_file="dev.tsv")
    both = load(LAYOUTS / "glue", "sst2", train_file="dev.tsv", validation_file="dev.tsv")
    assert "the validation examples include training examples" in both.notes[0]


def test_a_file_may_be_named_beside_a_card():
    keys = {"subset": "other", "validation_file": "sst2/validation-*"}
    dataset = load(LAYOUTS / "hub", "sst2", **keys)
    said = "other/train-00000-of-00002.parquet (and 1 more) and sst2/validation-00000-of-00001.parquet in"
    assert said in dataset.notes[0]
    for name in ("train-*.parquet", "train-00000-of-00002.parquet", "other/train-00000-of-00002.parquet"):
        inside = load(LAYOUTS / "hub", "sst2", subset="other", train_file=name)
        assert "other/train-00000-of-00002.parquet" in inside.notes[0]


def test_several_files_are_one_split():
    dataset = load(LAYOUTS / "several", "sst2", train_file="train_*")
    assert len(dataset.train) == 8
    assert dataset.train.origin.endswith("several/train_1.csv.gz and 1 more")
    assert "train_1.csv.gz (and 1 more) and dev.csv in" in dataset.notes[0]
    with pytest.raises(DataError, match=r"no training file train\.\*; name it in data\.train_file"):
        load(LAYOUTS / "several", "sst2")


OWN = {"name": "own", "fields": ("tweet",), "labels": ("0", "1")}
KEYS = {
    "columns by number": ("lmbff/mr", {"columns": {"tweet": 1, "label": 0}}, 8, FIRST),
    "no header, as the key says": ("lmbff/mr", {"columns": {"tweet": 1, "label": 0}, "header": False}, 8, FIRST),
    "columns by name": ("glue/SST-2", {"columns": {"tweet": "sentence"}}, 8, FIRST + " "),
    "a column by number and a header": ("glue/SST-2", {"columns": {"tweet": 0, "label": 1}}, 8, FIRST + " "),
    "a folder inside": ("glue", {"subset": "sst2", "columns": {"tweet": "sentence"}}, 8, FIRST + " "),
    "a configuration": ("hub", {"subset": "other", "columns": {"tweet": "sentence"}}, 8, FIRST),
    "a folder of its own": ("saved/train", {"holdout": 0.25, "columns": {"tweet": "text"}}, 6, FIRST),
    "LEAF": ("leaf", {"columns": {"tweet": 4}}, 6, "so cold"),
    "the file is the class": (
        "rt-polaritydata",
        {"label_of_file": {"*.neg": 0, "*.pos": 1}, "encoding": "latin-1", "holdout": 0.25},
        6,
        "two hours of nothing",
    ),
    "Sentiment140": (
        "sent140",
        {
            "columns": {"tweet": 5, "label": 0},
            "encoding": "latin-1",
            "train_file": "training*",
            "validation_file": "testdata*",
            "task": {**OWN, "labels": ("0", "4")},
        },
        6,
        FIRST,
    ),
}


@pytest.mark.parametrize("keys", KEYS)
def test_a_task_of_ones_own_says_it_with_keys(keys):
    path, changes, many, text = KEYS[keys]
    dataset = load_dataset(DataConfig(**{"task": OWN, "path": str(LAYOUTS / path), **changes}), 0)
    assert len(dataset.train) == many
    assert (text,) in dataset.train.texts
    assert set(dataset.train.labels_N) == {0, 1}


def test_a_delimiter_and_an_encoding_of_ones_own(tmp_path):
    rows = 'tweet;label\n"so; cold";0\nwärmer;1\n'
    (tmp_path / "train.txt").write_text(rows, encoding="utf-16")
    (tmp_path / "dev.csv").write_text(rows, encoding="utf-16")
    dataset = load(tmp_path, OWN, delimiter=";", encoding="utf-16")
    assert dataset.train.texts == dataset.validation.texts == [("so; cold",), ("wärmer",)]
    (tmp_path / "train.dat").write_text(rows.replace(";", "\t").replace('"', ""))
    (tmp_path / "dev.dat").write_text(rows.replace(";", "\t").replace('"so\t', '"so'))
    dataset = load(tmp_path, OWN, delimiter="tab", train_file="train.dat", validation_file="dev.dat", on_bad_row="skip")
    assert (dataset.train.texts, dataset.validation.texts) == ([("wärmer",)], [('"so cold"',), ("wärmer",)])


def test_files_of_one_class_can_have_splits(tmp_path):
    for name, text in (
        ("train/good.txt", "fine\n"),
        ("train/bad.txt", "dull\n"),
        ("dev/good.txt", "nice\n"),
        ("dev/bad.txt", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    keys = {"label_of_file": {"*/good.txt": 1, "*/bad.txt": 0}}
    dataset = load(tmp_path, OWN, **keys)
    assert (dataset.train.texts, dataset.train.labels_N.tolist()) == ([("dull",), ("fine",)], [0, 1])
    assert dataset.validation.texts == [("nice",)]
    by_name = load(tmp_path, OWN, label_of_file={"good.txt": 1, "bad.txt": 0})
    assert by_name.train.texts == dataset.train.texts and by_name.validation.texts == dataset.validation.texts
    with pytest.raises(DataError, match=r"no validation file .*; name its files in data\.label_of_file, or hold out"):
        load(tmp_path, OWN, label_of_file={"train/good.txt": 1, "train/bad.txt": 0})
    turned = load(tmp_path, OWN, **keys, train_file="dev/*", validation_file="train/*")
    assert turned.train.texts == [("nice",)]
    (tmp_path / "good.csv").write_text("tweet\nfine\nnice\n")
    (tmp_path / "bad.csv").write_text("tweet\ndull\n")
    assert len(load(tmp_path, OWN, label_of_file={"good.csv": 1, "bad.csv": 0}, holdout=0.3).train) == 2


REFUSED = {
    "several configurations": ("hub", {}, r"hub: holds the configurations sst2, other; choose one with data\.subset"),
    "no such subset": ("hub", {"subset": "ssst"}, r"data\.subset: .*hub holds no 'ssst' \(did you mean 'sst2'\?\); it holds "),
    "folders": ("glue", {}, r"no training file train\.\*; name it in data\.train_file, or choose a folder with data\.subset"),
    "files of one class": ("senteval", {}, r"or give data\.label_of_file where the file is the class; the folder holds mpqa"),
    "no header": (
        "lmbff/mr", {}, r"field 'tweet' is missing; .*data\.columns maps .*, data\.header=false makes the first line",
    ),
    "no header, a name": (
        "lmbff/mr",
        {"columns": {"tweet": "text", "label": 0}},
        r"train\.csv has no column 'text' for 'tweet'; it has no header, so its columns are numbered",
    ),
    "a column that is not there": (
        "glue/SST-2",
        {"columns": {"tweet": "sentense"}},
        r"train\.tsv has no column 'sentense' for 'tweet' \(did you mean 'sentence'\?\); it has sentence, label",
    ),
    "a number that is not there": (
        "glue/SST-2", {"columns": {"tweet": 2}}, r"has no column 2 for 'tweet'; it has 2, counted from 0",
    ),
    "a number for JSON": (
        "glue/BoolQ", {"columns": {"tweet": 2}}, r"data\.columns: the fields of .* have names; give that of 'tweet', not 2",
    ),
    "a column nothing asks for": (
        "glue/SST-2", {"columns": {"twet": 2}}, r"data\.columns: nothing uses 'twet' \(did you mean 'tweet'\?\)",
    ),
    "two words on the label": (
        "lmbff/mr", {"columns": {"label": 0}, "label_of_file": {"*": 0}}, r"data\.label_of_file and data\.columns both define",
    ),
    "an unknown label of a file": (
        "lmbff/mr", {"label_of_file": {"*": 7}}, r"data\.label_of_file: '\*' has the unknown label '7'; labels of task own are",
    ),
    "no file of that name": ("lmbff/mr", {"label_of_file": {"x*": 1}}, r"data\.label_of_file: no file is called 'x\*'; the f"),
    "out of the folder": ("lmbff/mr", {"label_of_file": {"../*": 1}}, r"'\.\./\*' leads out of .*; give names of files in it"),
    "two names of a file": (
        "senteval", {"label_of_file": {"*.pos": 1, "*": 0}}, r"data\.label_of_file: two of its names are those of .*mpqa\.pos",
    ),
    "no split": (
        "senteval", {"label_of_file": {"*.pos": 1, "*.neg": 0}}, r"no validation file .*hold out a share .* data\.holdout=0\.1",
    ),
    "not UTF-8": (
        "rt-polaritydata",
        {"label_of_file": {"*.pos": 1, "*.neg": 0}, "holdout": 0.2},
        r"rt-polarity\.neg:4: is not UTF-8 text \(byte 0xe9 at 8\); set data\.encoding, for example latin-1",
    ),
    "a label in the file": (
        "several", {"label_of_file": {"*.csv": 1}, "columns": {"tweet": "text"}, "holdout": 0.2},
        r"has a column 'label', but data\.label_of_file sets its label",
    ),
    "a delimiter of JSON": (
        "glue/BoolQ", {"delimiter": ",", "columns": {"tweet": "question"}},
        r"data\.delimiter is given, but none of train\.jsonl, val\.jsonl is a CSV or TSV file; drop the key",
    ),
    "an encoding of Parquet": (
        "hub/sst2", {"encoding": "latin-1", "columns": {"tweet": "sentence"}},
        r"data\.encoding is given, but none of train-00000-of-00002\.parquet, .* is a text file; drop the key",
    ),
    "too little to hold out": (
        "glue/SST-2", {"columns": {"tweet": "sentence"}, "holdout": 0.01},
        r"data\.holdout: 0\.01 of the 8 examples of .* are 0; training and validation need one or more each",
    ),
    "an encoding that is none of the file": (
        "lmbff/mr", {"encoding": "utf-16", "columns": {"tweet": 1, "label": 0}}, r"not utf-16.* text .*data\.encoding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_sentence_that_refuses_names_the_key_that_would_do(mistake):
    path, keys, sentence = REFUSED[mistake]
    with pytest.raises(DataError, match=sentence) as caught:
        load(LAYOUTS / path, OWN, **keys)
    assert len(str(caught.value)) < 800


def test_shards_that_are_missing_or_of_two_sets_are_named(tmp_path):
    row = '{"text": "x", "label": 1}\n'
    (tmp_path / "dev.jsonl").write_text(row)
    (tmp_path / "train-00000-of-00003.jsonl").write_text(row)
    (tmp_path / "train-00002-of-00003.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"shard 00001 of 3 is missing, .* set data\.train_file, as in train-\*"):
        load(tmp_path, "sst2")
    assert len(load(tmp_path, "sst2", train_file="train-*").train) == 2
    (tmp_path / "train-00000-of-00001.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"are not the shards of one split; name the ones to read in data\.train_file"):
        load(tmp_path, "sst2")


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "lists no files of its folder"),
        (
            '{"_data_files": [{"filename": "data-00009.arrow"}]}',
            "data-00009.arrow is not there, which state.json lists",
        ),
        ('{"_data_files": 3}', "does not list the files of a split as the library datasets does"),
        ("[", "does not list the files of a split"),
    ],
)
def test_a_saved_split_lists_its_own_files(tmp_path, state, sentence):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "state.json").write_text(state)
    with pytest.raises(DataError, match=sentence):
        load(tmp_path, "sst2")


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("configs: [{config_name: a, data_files: ../*}]", "lie outside its folder"),
        ("configs: [{config_name: a, data_files: 'x/*'}]", "no file is called 'x/\\*', which 'a' lists"),
        (
            "configs: [{config_name: a, data_files: [{split: test, path: t.csv}]}]",
            "lists the splits test of 'a', and no train",
        ),
        ("configs: [{data_files: x}]", "its configs must be a list of groups with config_name and data_files"),
        (
            "configs: [{config_name: a, data_files: 3}]",
            "data_files of 'a' must be a path, a list of them, or a list of",
        ),
        ("configs: [{config_name: a}]", "config 'a' must locate its files with data_files or data_dir"),
        ("configs: [", "is not valid YAML"),
    ],
)
def test_a_card_that_does_not_say_where_its_files_are(tmp_path, card, sentence):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n# Card\n")
    (tmp_path / "t.csv").write_text("text,label\nx,1\n")
    with pytest.raises(DataError, match=sentence):
        load(tmp_path, "sst2")


def test_a_damaged_file_of_leaf_is_named(tmp_path):
    value = json.loads((LAYOUTS / "leaf/train/all_data_niid_0_keep_0_train_9.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps(value))

    def refused(sentence, **changes):
        (tmp_path / "train.json").write_text(json.dumps({**value, **changes}))
        with pytest.raises(DataError, match=sentence):
            load(tmp_path, "sent140")

    refused("user 'lee' has 1 examples, not as many as num_samples says", num_samples=[2, 2, 3])
    refused("users does not list the names in user_data", users=["kim", "bob"])
    refused("users lists 1 names, user_data has 3", users=["kim"])
    user_data = {**value["user_data"], "lee": {"x": ["a"], "y": [0, 1]}}
    refused("user 'lee' has no lists x and y of the same length", user_data=user_data)


def test_the_example_of_the_docs_is_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "monday.txt" in block)
    (tmp_path / "config.yaml").write_text(example)
    for name, user in (("monday.txt", "ann"), ("tuesday.txt", "bob")):
        (tmp_path / name).write_text(
            f"{user};glad;olé; no\ncy;sad;oh\n".replace("olé; no", '"olé; no"'), encoding="latin-1"
        )
    config = read_config(tmp_path / "config.yaml", [f"data.path={tmp_path}", "sampling.clients_per_round=2"])
    data = partition_data(config)
    assert data.dataset.train.texts == [("olé; no",), ("oh",)]
    assert data.dataset.train.columns["user"] == ["ann", "cy"]
    assert data.dataset.train.labels_N.tolist() == data.dataset.validation.labels_N.tolist() == [1, 0]
    assert data.shards.num_clients == 2
