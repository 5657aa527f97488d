"""Mistakes in data files, each with its error message; PATH stands for the folder."""

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.core.errors import DataError
from fedsim.data.config import DataConfig
from fedsim.data.sources import load_dataset

GOOD = b'{"text": "good", "label": 1, "author": "ann"}\n'
DEV = {"dev.jsonl": GOOD}


NAMELESS = '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}'


def parquet(rows, metadata=None):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def repeated_column():
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"]), sink)
    return sink.getvalue()


def damaged_arrow():
    """Return an Arrow file in which a text begins behind its end."""
    table = pa.table({"text": ["good film", "bad film"], "label": [1, 0]})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    offsets = np.array([0, 9, 17], np.int32).tobytes()
    assert sink.getvalue().count(offsets) == 1
    return sink.getvalue().replace(offsets, np.array([0, -9, 17], np.int32).tobytes())


ROWS = {
    "broken JSON": (
        b'{"text": "x", "label": 1',
        "PATH/train.jsonl:2: is not valid JSON (Expecting ',' delimiter at column 25)",
    ),
    "not an object": (b'["x", 1]', "PATH/train.jsonl:2: is not a JSON object with fields but list"),
    "deep nesting": (b"[" * 100_000, "PATH/train.jsonl:2: is not valid JSON ("),
    "not UTF-8": (b'{"text": "caf\xe9", "label": 1}', "PATH/train.jsonl:2: is not UTF-8 text (byte 0xe9 at 14)"),
    "missing field": (
        b'{"phrase": "x", "label": 1}',
        "PATH/train.jsonl:2: field 'text' is missing; fields present: phrase, label; data.columns maps column names",
    ),
    "misspelt field": (
        b'{"texts": "x", "label": 1}',
        "PATH/train.jsonl:2: field 'text' is missing (did you mean 'texts'?); fields present: texts, label",
    ),
    "no label": (b'{"text": "x"}', "PATH/train.jsonl:2: field 'label' is missing; fields present: text"),
    "null": (
        b'{"text": null, "label": 1}',
        "PATH/train.jsonl:2: field 'text' is missing (it is null); fields present: label",
    ),
    "unknown label": (
        b'{"text": "x", "label": 2}',
        "PATH/train.jsonl:2: unknown label 2; labels of task sst2 are '0', '1'",
    ),
    "unlabelled": (
        b'{"text": "x", "label": -1}',
        "PATH/train.jsonl:2: unknown label -1; labels of task sst2 are '0', '1'",
    ),
    "empty text": (b'{"text": "", "label": 1}', "PATH/train.jsonl:2: field 'text' is empty"),
    "white space": (b'{"text": " \\t", "label": 1}', "PATH/train.jsonl:2: field 'text' is empty"),
    "number": (b'{"text": 5, "label": 1}', "PATH/train.jsonl:2: field 'text' is not text but int 5"),
    "list": (b'{"text": ["a"], "label": 1}', "PATH/train.jsonl:2: field 'text' is not text but list ['a']"),
    "surrogate": (
        b'{"text": "\\ud800", "label": 1}',
        "PATH/train.jsonl:2: field 'text' holds half of a surrogate pair",
    ),
}


def refused(folder, files, sentence, column=None, **changes):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset(DataConfig(**{"task": "sst2", "path": str(folder), **changes}), 0, column)
    message = str(caught.value)
    assert sentence in message.replace(str(folder), "PATH")
    assert "\n" not in message


@pytest.mark.parametrize("mistake", ROWS)
def test_bad_rows(tmp_path, mistake):
    row, sentence = ROWS[mistake]
    refused(tmp_path, {"train.jsonl": GOOD + row + b"\n" + GOOD, **DEV}, sentence)


@pytest.mark.parametrize("mistake", ROWS)
def test_only_bad_rows(tmp_path, mistake):
    row, sentence = ROWS[mistake]
    files = {"train.jsonl": b"\n" + row + b"\n\n", **DEV}
    refused(tmp_path, files, "PATH/train.jsonl: all 1 rows are bad, the first is " + sentence, on_bad_row="skip")


FILES = {
    "nothing": (
        {},
        "PATH: no training file train.*; name it in data.train_file; the folder holds nothing (readable: .jsonl,",
    ),
    "other names": (
        {"a.jsonl": GOOD, "b/c.txt": b""},
        "PATH: no training file train.*; name it in data.train_file, or choose a folder with data.subset; the folder holds "
        "a.jsonl, b/ (readable: .jsonl,",
    ),
    "no validation": (
        {"train.jsonl": GOOD},
        "PATH: no validation file (validation.*, dev.*, valid.*, val.* or a labelled test.*); name it",
    ),
    "test without labels": (
        {"train.jsonl": GOOD, "test.jsonl": b'{"text": "x"}\n'},
        "PATH/test.jsonl: has no labels (field 'label'), and the folder has no other validation file; name",
    ),
    "test with labels -1": (
        {"train.jsonl": GOOD, "test.csv": b"text,label\nx,-1\n"},
        "PATH/test.csv: has no labels (field 'label'), and the folder has no other",
    ),
    "two files": (
        {"train.jsonl": GOOD, "train.csv": b"", **DEV},
        "PATH: train.csv and train.jsonl both exist; name the one to read in data.train_file",
    ),
    "two validation files": (
        {"train.jsonl": GOOD, "dev.jsonl": GOOD, "dev.jsonl.gz": b""},
        "PATH: dev.jsonl and dev.jsonl.gz both exist; name the one to read in data.validation_file",
    ),
    "unknown extension": (
        {"train.txt": b"x", **DEV},
        "PATH/train.txt: unknown extension '.txt'; readable are .jsonl, ",
    ),
    "pickle": ({"train.pkl": b"x", **DEV}, "PATH/train.pkl: unknown extension '.pkl'; readable are .jsonl, "),
    "empty file": ({"train.jsonl": b"", **DEV}, "PATH/train.jsonl: holds no rows"),
    "header only": ({"train.csv": b"text,label\n", **DEV}, "PATH/train.csv: holds no rows"),
    "empty parquet": ({"train.parquet": b"", **DEV}, "PATH/train.parquet: is not a valid .parquet file: "),
    "no parquet": ({"train.parquet": b"text,label\n", **DEV}, "PATH/train.parquet: is not a valid .parquet file: "),
    "empty arrow": ({"train.arrow": b"", **DEV}, "PATH/train.arrow: "),
    "no arrow": ({"train.arrow": b"text,label\nx,1\n", **DEV}, "PATH/train.arrow: "),
    "no gzip": ({"train.jsonl.gz": GOOD, **DEV}, "PATH/train.jsonl.gz: cannot be read: Not a gzipped file"),
    "cut gzip": (
        {"train.jsonl.gz": gzip.compress(GOOD * 99)[:-9], **DEV},
        "PATH/train.jsonl.gz: cannot be read: Compressed",
    ),
    "broken array": (
        {"train.json": b'[{"text": "x",', **DEV},
        "PATH/train.json: is not valid JSON: Expecting property name",
    ),
    "bad row in an array": (
        {"train.json": b'[{"text": "x", "label": 1},\n{"text": "x"}]', **DEV},
        "PATH/train.json, row 2: field 'label' is missing; fields present: text",
    ),
    "bad row in parquet": (
        {"train.parquet": parquet([{"text": "x", "label": 1}, {"text": "y", "label": 5}]), **DEV},
        "PATH/train.parquet, row 2: unknown label 5; labels of task sst2 are '0', '1'",
    ),
    "repeated column in parquet": (
        {"train.parquet": repeated_column(), **DEV},
        "PATH/train.parquet: is not a valid .parquet file: it has column 'text' twice",
    ),
    "damaged metadata in parquet": (
        {"train.parquet": parquet([{"text": "x", "label": 1}], {"huggingface": "[]"}), **DEV},
        "PATH/train.parquet: is not a valid .parquet file: its metadata 'huggingface' describe no columns",
    ),
    "classes without names in parquet": (
        {"train.parquet": parquet([{"text": "x", "label": 1}], {"huggingface": NAMELESS}), **DEV},
        "its metadata 'huggingface' name no classes for column 'label'",
    ),
    "arrow that points outside of itself": (
        {"train.arrow": damaged_arrow(), **DEV},
        "PATH/train.arrow: is not a valid .arrow file: ",
    ),
    "repeated column": (
        {"train.csv": b"text,text\nx,1\n", **DEV},
        "PATH/train.csv:1: the header names column 'text' twice",
    ),
    "too few cells": (
        {"train.csv": b'text,label\n"two\nlines",1\nx\n', **DEV},
        "PATH/train.csv:4: has 1 cells where the header names 2 columns",
    ),
    "line after a quoted line feed": (
        {"train.csv": b'text,label\n"two\nlines",1\n\nx,3\n', **DEV},
        "PATH/train.csv:5: unknown label '3'",
    ),
    "open quote": (
        {"train.csv": b'text,label\nx,1\n"y,0\nz,1\n', **DEV},
        "PATH/train.csv:3: is not valid CSV from here on (",
    ),
    "csv not UTF-8": (
        {"train.csv": b"text,label\ncaf\xe9,1\n", **DEV},
        "PATH/train.csv:2: is not UTF-8 text (byte 0xe9 at 4)",
    ),
    "tsv cells": (
        {"train.tsv": b"text\tlabel\nx\ty\t1\n", **DEV},
        "PATH/train.tsv:2: has 3 cells where the header names 2",
    ),
    "tsv header not UTF-8": (
        {"train.tsv": b"\xff\xfetext\n", **DEV},
        "PATH/train.tsv:1: is not UTF-8 text (byte 0xff at 1); set data.encoding=utf-16",
    ),
    "UTF-16 without a mark": (
        {"train.csv": "text,label\nx,1\n".encode("utf-16-le"), **DEV},
        "PATH/train.csv:1: the header holds NUL characters, as UTF-16 does; set data.encoding, for example utf-16",
    ),
    "bad validation row": (
        {"train.jsonl": GOOD, "dev.jsonl": GOOD + b'{"text": "x", "label": "x"}\n'},
        "PATH/dev.jsonl:2: unknown label 'x'; labels of task sst2 are '0', '1'",
    ),
}


@pytest.mark.parametrize("mistake", FILES)
def test_bad_files(tmp_path, mistake):
    files, sentence = FILES[mistake]
    refused(tmp_path, files, sentence)


def test_an_open_quote_is_never_skipped(tmp_path):
    """It swallows all later rows, so skipping it as one bad row would silently lose them."""
    files = {"train.csv": b'text,label\nx,1\n"y,0\nz,1\n', **DEV}
    refused(tmp_path, files, "PATH/train.csv:3: is not valid CSV from here on", on_bad_row="skip")


def test_bad_paths(tmp_path):
    (tmp_path / "glue").mkdir()
    (tmp_path / "file.jsonl").write_bytes(GOOD)
    refused(tmp_path, {}, "data.path: PATH/gleu does not exist (did you mean 'glue'?)", path=str(tmp_path / "gleu"))
    refused(tmp_path, {}, "data.path: PATH/no/where does not exist", path=str(tmp_path / "no" / "where"))
    refused(tmp_path, {}, "data.path: PATH/file.jsonl is a file; give its folder", path=str(tmp_path / "file.jsonl"))
    refused(
        tmp_path,
        {},
        "data.train_file: PATH/t.csv does not exist; the folder holds file.jsonl, glue/",
        train_file="t.csv",
    )
    refused(
        tmp_path,
        {"train.jsonl": GOOD},
        "data.validation_file: PATH/v.csv does not exist; the folder holds",
        validation_file="v.csv",
    )


def test_bad_columns_and_sizes(tmp_path):
    files = {"train.jsonl": GOOD + b'{"text": "x", "label": 0, "author": null}\n', **DEV}
    sentence = "PATH/train.jsonl:2: partition.column 'author' is missing (it is null); fields present: text, label"
    refused(tmp_path, files, sentence, column="author")
    sentence = (
        "PATH/train.jsonl:1: partition.column 'autor' is missing (did you mean 'author'?); fields present: text, label"
    )
    refused(tmp_path, files, sentence, column="autor")
    sentence = "PATH/train.jsonl: no column 'topic' to keep; columns present: text, label, author"
    refused(tmp_path, files, sentence, keep_columns=("topic",))
    sentence = "data.train_examples: 3 examples are requested, but PATH/train.jsonl has 2"
    refused(tmp_path, files, sentence, train_examples=3)
    sentence = "data.validation_examples: 3 examples are requested, but PATH/dev.jsonl has 1"
    refused(tmp_path, files, sentence, validation_examples=3)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "train":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)  # root, as whom tests may run, is refused nothing
    refused(tmp_path, {}, "data.path: PATH/train cannot be read: Permission denied")
