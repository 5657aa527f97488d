import csv
import gzip
import io
import json
from decimal import Decimal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.core.errors import DataError
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.sources import load_dataset

ROWS = [
    {"text": "a fine film", "label": 1, "author": "ann"},
    {"text": 'he said "no" ,\nand left', "label": 0, "author": "bob"},
    {"text": "dull , very dull", "label": 0, "author": "ann"},
    {"text": "zwölf Äpfel \u2028 more", "label": 1, "author": "cy"},
]
ONE_LINE = [{**row, "text": row["text"].replace("\n", " ")} for row in ROWS]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def delimited(rows, delimiter=","):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow(rows, new=pa.ipc.new_file):
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


FORMATS = {
    ".jsonl": jsonl,
    ".json": jsonl,
    ".jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    ".csv": delimited,
    ".csv.gz": lambda rows: gzip.compress(delimited(rows)),
    ".tsv": lambda rows: delimited(ONE_LINE, "\t"),
    ".parquet": parquet,
    ".arrow": arrow,
}


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def files(tmp_path, **changes):
    return DataConfig(**{"task": "sst2", "path": str(tmp_path), **changes})


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path, extension):
    write(tmp_path, "train" + extension, FORMATS[extension](ROWS))
    write(tmp_path, "validation" + extension, FORMATS[extension](ROWS))
    dataset = load_dataset(files(tmp_path), 0, "author")
    rows = ONE_LINE if extension == ".tsv" else ROWS
    assert dataset.train.texts == dataset.validation.texts == [(row["text"],) for row in rows]
    assert dataset.train.labels_N.tolist() == [1, 0, 0, 1]
    assert dataset.train.labels_N.dtype == np.int64
    assert dataset.train.columns == {"author": ["ann", "bob", "ann", "cy"]}
    assert dataset.train.origin == str(tmp_path / ("train" + extension))
    assert (dataset.train.skipped, dataset.train.skipped_reasons) == (0, {})


def test_arrow_streams_and_json_arrays_are_read_too(tmp_path):
    write(tmp_path, "train.arrow", arrow(ROWS, pa.ipc.new_stream))
    write(tmp_path, "dev.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=1).encode())
    dataset = load_dataset(files(tmp_path), 0)
    assert dataset.train.texts == dataset.validation.texts == [(row["text"],) for row in ROWS]


def test_tsv_follows_glue_and_undoes_what_csv_writers_quote(tmp_path):
    lines = ["text\tlabel", '"hello" , it said\t1', '"\t0', '"he said ""no"""\t1', '"quoted"\t0']
    write(tmp_path, "train.tsv", "\r\n".join(lines).encode())
    write(tmp_path, "dev.tsv", "\n".join(lines).encode())
    dataset = load_dataset(files(tmp_path), 0)
    assert dataset.train.texts == [('"hello" , it said',), ('"',), ('he said "no"',), ('"quoted"',)]
    assert dataset.validation.texts == dataset.train.texts


@pytest.mark.parametrize("name", ["validation", "dev", "valid", "val", "test"])
def test_names_of_the_validation_file(tmp_path, name):
    write(tmp_path, "train.jsonl", jsonl(ROWS))
    write(tmp_path, f"{name}.jsonl", jsonl(ROWS[:2]))
    assert len(load_dataset(files(tmp_path), 0).validation) == 2


def test_validation_goes_before_dev_and_test(tmp_path):
    for name, count in (("train", 4), ("test", 1), ("dev", 2), ("validation", 3)):
        write(tmp_path, f"{name}.jsonl", jsonl(ROWS[:count]))
    assert len(load_dataset(files(tmp_path), 0).validation) == 3


def test_a_folder_named_like_the_task_and_files_named_in_the_config(tmp_path):
    write(tmp_path, "sst2/train.jsonl", jsonl(ROWS))
    write(tmp_path, "sst2/dev.jsonl", jsonl(ROWS[:1]))
    assert len(load_dataset(files(tmp_path), 0).train) == 4
    write(tmp_path, "mine.csv", delimited(ROWS[:3]))
    write(tmp_path, "held/out.parquet", parquet(ROWS[:2]))
    dataset = load_dataset(files(tmp_path, train_file="mine.csv", validation_file="held/out.parquet"), 0)
    assert (len(dataset.train), len(dataset.validation)) == (3, 2)


def test_class_names_in_the_metadata_of_a_file_decide_over_numbers(tmp_path):
    """``datasets`` keeps the names of classes beside the numbers; its TREC counts ABBR first, the task DESC."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]),
        }
    )
    table = datasets.Dataset.from_dict({"text": ["what ?", "who ?"], "label": [0, 2]}, features=features)
    table.to_parquet(str(tmp_path / "train.parquet"))
    table.to_parquet(str(tmp_path / "test.parquet"))
    dataset = load_dataset(files(tmp_path, task="trec"), 0)
    assert dataset.train.labels_N.tolist() == [2, 0]


def test_a_task_of_ones_own(tmp_path):
    task = TaskConfig(name="own", fields=("q", "p"), label_field="gold", labels=("no", "yes"))
    rows = [{"q": "one", "p": "two", "gold": "yes", "extra": None}, {"q": "x", "p": "y", "gold": "no", "extra": 3}]
    write(tmp_path, "train.jsonl", jsonl(rows))
    write(tmp_path, "dev.jsonl", jsonl(rows))
    dataset = load_dataset(files(tmp_path, task=task, keep_columns=("extra",)), 0)
    assert dataset.train.texts == [("one", "two"), ("x", "y")]
    assert dataset.train.labels_N.tolist() == [1, 0]
    assert dataset.train.columns == {"extra": [None, 3]}


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    lines = [
        *jsonl(ROWS).splitlines(),
        b"{broken",
        b'{"text": "no label"}',
        b'{"text": "  ", "label": 1}',
        b'{"text": 7, "label": 1}',
        b'{"text": "fine", "label": 7}',
        b'{"text": "\xff", "label": 1}',
        b'{"text": "half \\ud800", "label": 1}',
    ]
    write(tmp_path, "train.jsonl", b"\n".join(lines))
    write(tmp_path, "dev.jsonl", jsonl(ROWS))
    train = load_dataset(files(tmp_path, on_bad_row="skip"), 0).train
    assert train.texts == [(row["text"],) for row in ROWS]
    assert train.skipped == 7
    assert train.skipped_reasons == {
        "broken line": 2,
        "missing field": 1,
        "empty text": 1,
        "text is not a string": 1,
        "unknown label": 1,
        "text is not Unicode": 1,
    }
    assert train.take([1, 0]).skipped == 7


def test_examples_kept_depend_on_seed_and_size_only_and_stand_in_their_order(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2, "author": i} for i in range(50)]
    write(tmp_path, "train.jsonl", jsonl(rows))
    write(tmp_path, "dev.jsonl", jsonl(rows))

    def kept(seed, size):
        dataset = load_dataset(files(tmp_path, train_examples=size, validation_examples=7), seed, "author")
        assert [f"text {i}" for i in dataset.train.columns["author"]] == [text for (text,) in dataset.train.texts]
        assert [i % 2 for i in dataset.train.columns["author"]] == dataset.train.labels_N.tolist()
        assert len(dataset.validation) == 7
        return dataset.train.columns["author"]

    assert kept(3, 20) == kept(3, 20) == sorted(kept(3, 20))
    assert kept(3, 20) != kept(4, 20)
    assert set(kept(3, 10)) < set(kept(3, 20))
    assert kept(3, 50) == list(range(50))


def test_the_embedded_corpus_is_the_default():
    dataset = load_dataset(DataConfig(train_examples=100, keep_columns=("author",)), 0)
    assert dataset.task.name == "reviews"
    assert len(dataset.train) == 100
    assert set(dataset.train.labels_N) == {0, 1}
    assert all(dataset.train.columns["author"])


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_hub_reads_what_load_dataset_reads(tmp_path, hub_cache):
    """A folder in the layout of a data set of the hub goes the same way as a name on the hub."""
    folder = tmp_path / "hub"
    write(folder, "train.parquet", parquet(ROWS))
    write(folder, "test.parquet", parquet(ROWS[:2]))
    config = DataConfig(task="sst2", source="hub", hub_name=str(folder), validation_split="test")
    dataset = load_dataset(config, 0, "author")
    assert dataset.train.texts == [(row["text"],) for row in ROWS]
    assert dataset.train.columns["author"] == ["ann", "bob", "ann", "cy"]
    assert dataset.validation.labels_N.tolist() == [1, 0]


@pytest.mark.parametrize("task", ["rte", "trec", "boolq"])
def test_hub_columns_and_numbers_of_built_in_tasks(tmp_path, hub_cache, monkeypatch, task):
    """The columns, types and splits of the hub's copies, in a folder that stands in for the name."""
    from fedsim.data.tasks import HUB_SOURCES, HubSource

    text, names = datasets.Value("string"), ["entailment", "not_entailment"]
    columns, features, expected = {
        "rte": (
            {"sentence1": ["p", "q"], "sentence2": ["r", "s"], "label": [1, 0]},
            {"sentence1": text, "sentence2": text, "label": datasets.ClassLabel(names=names)},
            ([("p", "r"), ("q", "s")], [1, 0]),
        ),
        "trec": (
            {"text": ["what", "who"], "label": [3, 9], "label_coarse_original": ["DESC", "HUM"]},
            {"text": text, "label": datasets.Value("int64"), "label_coarse_original": text},
            ([("what",), ("who",)], [0, 3]),
        ),
        "boolq": (
            {"question": ["is it", "are we"], "passage": ["yes", "no"], "answer": [True, False]},
            {"question": text, "passage": text, "answer": datasets.Value("bool")},
            ([("is it", "yes"), ("are we", "no")], [1, 0]),
        ),
    }[task]
    builtin = HUB_SOURCES[task]
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    for split in ("train", builtin.validation_split):
        (tmp_path / task).mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / task / f"{split}.parquet"))
    there = HubSource(str(tmp_path / task), None, builtin.columns, builtin.validation_split)
    monkeypatch.setitem(HUB_SOURCES, task, there)
    dataset = load_dataset(DataConfig(task=task, source="hub"), 0)
    assert (dataset.train.texts, dataset.train.labels_N.tolist()) == expected
    assert (dataset.validation.texts, dataset.validation.labels_N.tolist()) == expected


def test_auto_takes_files_where_a_path_is_given():
    assert DataConfig().effective_source == "embedded"
    assert DataConfig(path="x").effective_source == "files"
    assert DataConfig(source="hub").effective_source == "hub"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"source": "files"}, "data.source=files needs data.path"),
        ({"source": "hub", "task": "reviews"}, "no hub dataset is known for task 'reviews'"),
        ({"task": "rte"}, "the embedded corpus has no task 'rte' (it has reviews"),
        ({"task": "revews"}, "unknown task 'revews' (did you mean 'reviews'?)"),
        (
            {"train_examples": 10**6},
            "data.train_examples: 1000000 examples are requested, but embedded reviews train has",
        ),
        ({"keep_columns": ["autor"]}, "no column 'autor' to keep (did you mean 'author'?); columns present: "),
    ],
)
def test_keys_that_do_not_fit_are_named(config, sentence):
    with pytest.raises(DataError) as caught:
        load_dataset(DataConfig(**config), 0)
    assert sentence in str(caught.value)


def test_a_data_set_that_the_hub_does_not_give_is_named(tmp_path, hub_cache):
    with pytest.raises(DataError, match=r"data\.hub_name: .*nowhere train cannot be loaded from the Hugging Face hub"):
        load_dataset(DataConfig(task="sst2", source="hub", hub_name=str(tmp_path / "nowhere")), 0)
    write(tmp_path, "d/train.csv", delimited(ROWS))
    with pytest.raises(DataError, match=r"d validation cannot be loaded from the Hugging Face hub .*validation"):
        load_dataset(DataConfig(task="sst2", source="hub", hub_name=str(tmp_path / "d")), 0)


# -- long cells, line ends, and types of Arrow ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.csv.gz"])
def test_a_cell_may_be_as_long_as_an_article(tmp_path, name):
    long = "word " * 40_000
    write(tmp_path, "dev.csv", b"text,label\nx,1\n")
    row = f"text,label\n{long},1\n" if "csv" in name else f"text\tlabel\n{long}\t1\n"
    write(tmp_path, name, gzip.compress(row.encode()) if name.endswith(".gz") else row.encode())
    assert load_dataset(files(tmp_path), 0).train.texts == [(long,)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(("name", "delimiter"), [("train.csv", b","), ("train.tsv", b"\t")])
def test_line_ends_of_all_systems(tmp_path, name, delimiter, end):
    lines = [
        delimiter.join(cells) for cells in ((b"text", b"label"), (b"a fine film", b"1"), (b"dull", b"0"), (b"x", b"2"))
    ]
    write(tmp_path, name, end.join(lines))
    write(tmp_path, "dev.jsonl", end.join([b'{"text": "x", "label": 1}', b'{"text": "y", "label": 0}']))
    dataset = load_dataset(files(tmp_path, on_bad_row="skip"), 0)
    assert dataset.train.texts == [("a fine film",), ("dull",)]
    assert dataset.validation.texts == [("x",), ("y",)]
    with pytest.raises(DataError, match=r"train\.[ct]sv:4: unknown label '2'"):
        load_dataset(files(tmp_path), 0)


def test_mixed_line_ends_in_a_header_are_refused(tmp_path):
    write(tmp_path, "train.tsv", b"text\tlabel\rx\t1\ry\t0\n")
    write(tmp_path, "dev.tsv", b"text\tlabel\nx\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv:1: mixed line ends, carriage returns and line feeds"):
        load_dataset(files(tmp_path), 0)


def save(folder, name, table):
    folder.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(table, folder / name)
        return
    with pa.ipc.new_stream(folder / name, table.schema) as writer:
        writer.write_table(table)


def extension_array(kind, values):
    """Return an array of the type json as PyArrow has it, or as it stores one of a type that it does not know."""
    if kind == "json":
        return pa.field("text", pa.json_()), pa.ExtensionArray.from_storage(pa.json_(), pa.array(values))
    return pa.field("text", pa.string(), metadata={"ARROW:extension:name": kind}), pa.array(values)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_json_of_datasets_is_decoded(tmp_path, suffix):
    """The library datasets gives a column this type as soon as one row of JSON Lines is no string."""
    text = 'he said "no"\nand è'
    rows = [{"text": text, "label": 1}, {"text": "plain", "label": "0"}, {"text": ["a"], "label": None}]
    write(tmp_path, "source/train.jsonl", jsonl(rows))
    read = datasets.load_dataset(
        "json", data_files=str(tmp_path / "source/train.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert type(read.features["text"]).__name__ == type(read.features["label"]).__name__ == "Json"
    if suffix == ".parquet":
        read.to_parquet(str(tmp_path / "train.parquet"))
    else:
        read.save_to_disk(str(tmp_path / "train"))
    write(tmp_path, "dev.jsonl", jsonl(rows[:1]))
    train = load_dataset(files(tmp_path, on_bad_row="skip"), 0).train
    assert train.texts == [(text,), ("plain",)]
    assert train.labels_N.tolist() == [1, 0]
    assert train.skipped_reasons == {"missing field": 1}


def test_json_is_known_by_its_name_alone_and_must_be_json(tmp_path):
    write(tmp_path, "dev.jsonl", jsonl(ROWS))
    for values, expected in (
        (['"a\\n\\"b\\""', "7"], "field 'text' is not text but int 7"),
        (["{"], "has type json, but"),
    ):
        for kind in ("json", "arrow.json"):
            field, array = extension_array(kind, values)
            schema = pa.schema([field, pa.field("label", pa.int64())])
            save(tmp_path, "train.arrow", pa.Table.from_arrays([array, pa.array([1] * len(values))], schema=schema))
            with pytest.raises(DataError, match=expected):
                load_dataset(files(tmp_path), 0)
    field, array = extension_array("arrow.json", ['"a\\n\\"b\\""'])
    save(
        tmp_path,
        "train.arrow",
        pa.Table.from_arrays([array, pa.array([1])], schema=pa.schema([field, ("label", pa.int64())])),
    )
    assert load_dataset(files(tmp_path), 0).train.texts == [('a\n"b"',)]


TEXTS = {
    "string_view": (pa.array(["a", "b"], pa.string_view()), None),
    "large_string": (pa.array(["a", "b"], pa.large_string()), None),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), None),
    "run_end_encoded": (pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["a", "b"])), None),
    "binary": (pa.array([b"a", b"b"]), "field 'text' is not text but bytes b'a'"),
    "list": (pa.array([["a"], ["b"]]), r"field 'text' is not text but list \['a'\]"),
    "struct": (pa.array([{"a": "b"}, {"a": "c"}]), "field 'text' is not text but dict {'a': 'b'}"),
    "timestamp": (pa.array([1, 2], pa.timestamp("s")), "field 'text' is not text but datetime"),
    "a time zone that is none": (
        pa.array([1, 2], pa.timestamp("s", "No/Where")),
        r"column 'text' has the unsupported type timestamp\[s, tz=No/Where\]",
    ),
    "null": (pa.nulls(2), r"field 'text' is missing \(it is null\)"),
    "number": (pa.array([1.5, 2.5]), "field 'text' is not text but float 1.5"),
    "json inside": (
        pa.StructArray.from_arrays([pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"a"', '"b"']))], ["a"]),
        "column 'text' has the unsupported type struct<a: extension<arrow.json>>",
    ),
    "an extension": ("own.type", "column 'text' has the unsupported type own.type"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_types_of_texts_are_decoded_or_refused_by_name(tmp_path, kind):
    array, sentence = TEXTS[kind]
    field = pa.field("text", array.type) if not isinstance(array, str) else None
    if field is None:
        field, array = extension_array(array, ["a", "b"])
    save(
        tmp_path,
        "train.arrow",
        pa.Table.from_arrays([array, pa.array([1, 0])], schema=pa.schema([field, ("label", pa.int64())])),
    )
    write(tmp_path, "dev.jsonl", jsonl(ROWS))
    if sentence is None:
        assert load_dataset(files(tmp_path), 0).train.texts == [("a",), ("b",)]
    else:
        with pytest.raises(DataError, match=rf"train\.arrow, row 1: {sentence}"):
            load_dataset(files(tmp_path), 0)


LABELS = {
    "float": (pa.array([1.0, 0.0]), None),
    "float16": (pa.array([1.0, 0.0], pa.float16()), None),
    "truth values": (pa.array([True, False]), None),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())), None),
    "decimal": (pa.array([Decimal("1.00"), Decimal("0.00")]), None),
    "dictionary": (pa.array(["1", "0"]).dictionary_encode(), None),
    "unsigned": (pa.array([1, 0], pa.uint8()), None),
    "NaN": (pa.array([float("nan"), 0.0]), "unknown label nan"),
    "list": (pa.array([["1"], ["0"]]), r"unknown label \['1'\]"),
    "binary": (pa.array([b"1", b"0"]), "unknown label b'1'"),
    "timestamp": (pa.array([1, 0], pa.timestamp("s")), "unknown label datetime"),
    "null": (pa.nulls(2), r"field 'label' is missing \(it is null\)"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_types_of_labels_are_decoded_or_refused(tmp_path, kind):
    array, sentence = LABELS[kind]
    save(tmp_path, "train.arrow", pa.Table.from_arrays([pa.array(["a", "b"]), array], names=["text", "label"]))
    write(tmp_path, "dev.jsonl", jsonl(ROWS))
    if sentence is None:
        assert load_dataset(files(tmp_path), 0).train.labels_N.tolist() == [1, 0]
    else:
        with pytest.raises(DataError, match=rf"train\.arrow, row 1: {sentence}"):
            load_dataset(files(tmp_path), 0)


def test_hub_data_without_a_split_have_a_part_held_out(tmp_path, hub_cache, monkeypatch):
    """As those of FlowerTune's medical questions, whose instruction is not read."""
    from fedsim.data.tasks import HUB_SOURCES, HubSource

    rows = {"instruction": ["unused"] * 10, "input": [f"q{n}" for n in range(10)], "output": ["a"] * 10}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "train.parquet"))
    known = HUB_SOURCES["flowertune_medical"]
    there = HubSource(str(tmp_path), None, known.columns, known.validation_split)
    monkeypatch.setitem(HUB_SOURCES, "flowertune_medical", there)
    dataset = load_dataset(DataConfig(task="flowertune_medical", source="hub"), 0)
    assert (len(dataset.train), len(dataset.validation)) == (8, 2)
    assert {answer for _, answer in dataset.train.texts} == {"a"} and dataset.train.texts[0][0].startswith("q")
    assert "20% of the examples, drawn with the seed, are held out" in dataset.notes[0]


def test_hub_columns_and_a_held_out_part(tmp_path, hub_cache):
    write(tmp_path / "hub", "train.csv", delimited([{"phrase": row["text"], "stars": row["label"]} for row in ROWS]))
    config = {"task": "sst2", "source": "hub", "hub_name": str(tmp_path / "hub"), "holdout": 0.25}
    dataset = load_dataset(DataConfig(**config, columns={"text": "phrase", "label": 1}), 0)
    assert (len(dataset.train), len(dataset.validation)) == (3, 1)
    assert {text for (text,) in dataset.train.texts + dataset.validation.texts} == {row["text"] for row in ROWS}
    with pytest.raises(DataError, match=r"has no column 'text' for 'text'; it has phrase, stars"):
        load_dataset(DataConfig(**config, columns={"text": "text"}), 0)


def test_a_client_without_a_name_is_a_bad_row(tmp_path):
    rows = [{**row, "author": author} for row, author in zip(ROWS, (1.0, float("nan"), 2.0, 1.0), strict=True)]
    write(tmp_path, "train.parquet", parquet(rows))
    write(tmp_path, "dev.csv", b"text,label\nx,1\n")
    with pytest.raises(DataError, match=r"train\.parquet, row 2: partition\.column 'author' is missing \(it is NaN\)"):
        load_dataset(files(tmp_path), 0, "author")
    train = load_dataset(files(tmp_path, on_bad_row="skip"), 0, "author").train
    assert (train.columns["author"], train.skipped_reasons) == ([1.0, 2.0, 1.0], {"missing field": 1})
    write(tmp_path, "train.csv", b"text,label,author\nx,1,\n")
    with pytest.raises(DataError, match=r"train\.csv:2: partition\.column 'author' is missing \(it is empty\)"):
        load_dataset(files(tmp_path, train_file="train.csv"), 0, "author")
