"""Folders in the layouts in which people have the built-in tasks' data: damaged, renamed, incomplete, and with any keys."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.values import ODD, WORDS
from fedsim.configuration.schema import build_config
from fedsim.simulation.preparation import partition_data, settled

Files = dict[str, bytes]
"""Contents by path."""
_WORDS = (
    "good",
    "bad",
    "fine",
    "dull",
    "the film was",
    "and so on",
    '"quoted"',
    'a " in it',
    "caf\u00e9",
    "x , y",
    "#",
)


def layout_case(number: int, folder: Path) -> None:
    """Write the files of a task in a layout, spoil some, draw some keys; read them and deal them out."""
    rng = Random(number)
    task, make = rng.choice(LAYOUTS)
    files = make(rng)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        _spoil(files, rng)
    for name, content in files.items():
        path = folder / name
        if path.is_dir() or any(parent.is_file() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    own = rng.random() < 0.3
    values: dict[str, Any] = {
        "data": {
            "path": str(folder),
            "task": _own_task(rng) if own else task,
            "on_bad_row": rng.choice(("raise", "skip")),
        },
        "partition": {"kind": "iid", "clients": 2},
        "sampling": {"clients_per_round": 1},
    }
    for _ in range(rng.choice((0, 0, 1, 2, 3)) + own):
        key = rng.choice(list(KEYS))
        values["data"][key] = rng.choice(KEYS[key]) if rng.random() < 0.9 else rng.choice((*WORDS, *ODD))
    if rng.random() < 0.2:
        values["partition"] = {"kind": "by_column", "column": rng.choice(("user", "user", "label", "4"))}
    config, data = settled(build_config(values))
    if data is None:
        partition_data(config)


KEYS: dict[str, Sequence[Any]] = {
    "subset": ("sst2", "SST-2", "other", "data", "train", "..", "nothing"),
    "train_file": ("train*", "*", "**/*", "train", "data", "[", "train.tsv", "*.pos", "/", "..", "*/*"),
    "validation_file": ("dev*", "test*", "*", "dev", "dev.tsv", "[!t]*"),
    "holdout": (0.01, 0.2, 0.5, 0.99),
    "columns": (
        {"text": 0}, {"text": 1, "label": 0}, {"text": "sentence"}, {"text": 5, "label": 0, "user": 4}, {"label": 3},
        {"text": "text"}, {"a": 1, "b": 2, "label": 3}, {"text": 99}, {"text": 0, "label": 0}, {"x": 0}, {"label": ""},
    ),
    "header": (True, False, "auto"),
    "delimiter": ("tab", ",", ";", " ", "x", "\x00", "é"),
    "encoding": ("utf-8", "latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7", "shift_jis", "hz", "unicode_escape"),
    "label_of_file": (
        {"*.pos": 1, "*.neg": 0}, {"*": 0}, {"train*": 1, "dev*": 0}, {"**/*": 1}, {"../*": 0}, {"x": 0}, {"*.csv": 1}, {"": 0},
        {"*.pos": "x"}, {"[": 1},
    ),
    "keep_columns": (["user"], ["label"], ["idx"], ["nothing"]),
}  # fmt: skip


def _own_task(rng: Random) -> dict[str, Any]:
    fields = rng.choice((["text"], ["text"], ["sentence"], ["a", "b"], ["text", "label", "user"], ["x"]))
    labels = rng.choice(([0, 1], [0.0, 1.0], [False, True], ["0", "4"], ["neg", "pos"], [0.5, "a"]))
    return {"name": "own", "fields": fields, "labels": labels, "template": "{" + "} {".join(fields) + "} <mask>",
            "label_words": ["terrible", "great"]}  # fmt: skip


def _spoil(files: Files, rng: Random) -> None:
    """Damage, empty, remove, copy or rename one file, or put another one beside it."""
    name = rng.choice(list(files) or [""])
    if not name:
        return
    match rng.choice(("damage", "damage", "damage", "empty", "remove", "rename", "copy", "gzip", "beside")):
        case "damage":
            files[name] = damage(files[name], rng)
        case "empty":
            files[name] = b""
        case "remove":
            del files[name]
        case "rename":
            files[_renamed(name, rng)] = files.pop(name)
        case "copy":
            files[_renamed(name, rng)] = files[name]
        case "gzip":
            files[name + ".gz"] = gzip.compress(files.pop(name))
        case _:
            files[
                rng.choice(
                    ("README.md", "train.zip", "train/x", "dev.tsv", "state.json", "data/train.csv", "sst2", "SST2/x")
                )
            ] = rng.choice(
                (b"", b"x", b"text\tlabel\nx\t1\n", b"---\nconfigs: [{config_name: x}]\n---\n", b"---\n[\n---\n")
            )


def _renamed(name: str, rng: Random) -> str:
    old, new = rng.choice(
        (("train", "TRAIN"), ("00000", "00001"), (".tsv", ".csv"), (".", "_"), ("e", ""), ("/", "/x/"), ("", "z"))
    )
    return name.replace(old, new, 1) or "x"


# -- the layouts -------------------------------------------------------------------------------------------------------


def _text(rng: Random) -> str:
    return " ".join(rng.choices(_WORDS, k=4))


def _rows(rng: Random, *columns: Callable[[int], object]) -> list[list[object]]:
    return [[column(i) for column in columns] for i in range(rng.choice((0, 2, 12, 12, 12, 12, 12, 12, 40)))]


def _lines(rows: list[list[object]], delimiter: str = "\t", end: str = "\n") -> bytes:
    return "".join(delimiter.join(map(str, row)) + end for row in rows).encode()


def _csv(rows: list[list[object]], encoding: str = "utf-8", **keys: Any) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, **keys).writerows(rows)
    return out.getvalue().encode(encoding, errors="replace")


def _glue(rng: Random) -> Files:
    end = rng.choice(("\n", "\n", "\r\n", "\r"))
    folder = rng.choice(("", "SST-2/", "sst2/"))
    return {
        f"{folder}{split}.tsv": _lines(
            [["sentence", "label"], *_rows(rng, lambda i: _text(rng), lambda i: i % 2)], "\t", end
        )
        for split in ("train", "dev", "test")
    }


def _mrpc(rng: Random) -> Files:
    header: list[object] = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    names = rng.choice((("train.tsv", "dev.tsv"), ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")))
    number = lambda i: 100 + i  # noqa: E731
    return {
        name: _lines([header, *_rows(rng, lambda i: i % 2, number, number, lambda i: _text(rng), lambda i: _text(rng))])
        for name in names
    }


def _cola(rng: Random) -> Files:
    rows = lambda: _rows(rng, lambda i: "own", lambda i: i % 2, lambda i: "*", lambda i: _text(rng))  # noqa: E731
    return {"train.tsv": _lines(rows()), "dev.tsv": _lines(rows())}


def _boolq(rng: Random) -> Files:
    label = rng.choice(("label", "answer"))
    return {
        name: b"".join(
            json.dumps({"question": _text(rng), "passage": _text(rng), label: bool(i % 2)}).encode() + b"\n"
            for i in range(rng.choice((0, 2, 12, 12, 12, 12, 12)))
        )
        for name in ("train.jsonl", "val.jsonl")
    }


def _lm_bff(rng: Random) -> Files:
    return {name: _csv(_rows(rng, lambda i: i % 2, lambda i: _text(rng))) for name in ("train.csv", "test.csv")}


def _trec(rng: Random) -> Files:
    kinds = ("DESC:manner", "ENTY:animal", "ABBR:exp", "HUM:ind", "LOC:city", "NUM:count")
    return {
        name: _lines(_rows(rng, lambda i: kinds[i % 6], lambda i: _text(rng)), " ").decode().encode("latin-1")
        for name in rng.choice((("train.label", "test.label"), ("train_5500.label", "TREC_10.label")))
    }


def _of_classes(*names: str) -> Callable[[Random], Files]:
    def make(rng: Random) -> Files:
        return {name: _lines(_rows(rng, lambda i: _text(rng))).decode().encode("latin-1") for name in names}

    return make


def _sent140(rng: Random) -> Files:
    quoting = rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
    return {
        name: _csv(
            _rows(
                rng,
                lambda i: 4 * (i % 2),
                str,
                lambda i: "Mon",
                lambda i: "NO_QUERY",
                lambda i: f"u{i % 3}",
                lambda i: _text(rng),
            ),
            "latin-1",
            quoting=quoting,
        )
        for name in rng.choice((("train.csv", "test.csv"), ("training.1600000.x.csv", "testdata.manual.x.csv")))
    }


def _leaf(rng: Random) -> Files:
    files = {}
    for split in ("train", "test"):
        users = [f"u{i}" for i in range(rng.choice((0, 1, 3)))]
        data = {
            user: {"x": [["0", "Mon", "q", user, _text(rng), "t"] for _ in range(4)], "y": [i % 2 for i in range(4)]}
            for user in users
        }
        value: dict[str, Any] = {"users": users, "num_samples": [4] * len(users), "user_data": data}
        if data and rng.random() < 0.3:
            part = rng.choice((value, data, data[users[0]]))
            part[rng.choice(list(part))] = rng.choice(ODD)
        files[f"{split}/all_data.json"] = json.dumps(value, indent=rng.choice((None, 1))).encode()
    return files


def _table(rng: Random, column: str) -> pa.Table:
    many = rng.choice((0, 2, 12, 12, 12, 12, 12))
    texts: Any = pa.array([_text(rng) for _ in range(many)])
    match rng.choice(("string", "string", "json", "view", "dictionary", "unknown", "bytes", "list")):
        case "json":
            texts = pa.ExtensionArray.from_storage(
                pa.json_(), pa.array([json.dumps(text) for text in texts.to_pylist()], pa.string())
            )
        case "view":
            texts = texts.cast(pa.string_view())
        case "dictionary":
            texts = texts.dictionary_encode()
        case "bytes":
            texts = texts.cast(pa.binary())
        case "list":
            texts = pa.array([[text] for text in texts.to_pylist()], pa.list_(pa.string()))
    labels = [i % 2 for i in range(many)]
    kinds: tuple[pa.DataType, ...] = (pa.int64(), pa.float32(), pa.decimal128(21, 2), pa.bool_(), pa.string())
    label = pa.array(labels).cast(rng.choice(kinds))
    about = rng.choice(
        ({}, {"huggingface": '{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["0", "1"]}}}}'})
    )
    return pa.table({column: texts, "label": label, "idx": pa.array(labels)}).replace_schema_metadata(about)


def _parquet(rng: Random, column: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(rng, column), sink)
    return sink.getvalue()


def _hub(rng: Random) -> Files:
    files = {}
    for subset in ("sst2", "other"):
        for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
            files[f"{subset}/{name}.parquet"] = _parquet(rng, "sentence")
    splits = "".join(f"  - split: {split}\n    path: NAME/{split}-*\n" for split in ("train", "validation"))
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n{splits.replace('NAME', name)}" for name in ("sst2", "other")
    )
    files["README.md"] = f"---\nlicense: mit\nconfigs:\n{configs}---\n# card\n".encode()
    if rng.random() < 0.5:
        files = {name.replace("sst2/", rng.choice(("data/", ""))): content for name, content in files.items()}
    return files


def _saved(rng: Random) -> Files:
    files = {"dataset_dict.json": b'{"splits": ["train", "validation"]}'}
    for split in ("train", "validation"):
        table, sink = _table(rng, "text"), io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        files[f"{split}/data-00000-of-00001.arrow"] = sink.getvalue()
        files[f"{split}/state.json"] = b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'
    return files


LAYOUTS: tuple[tuple[str, Callable[[Random], Files]], ...] = (
    ("sst2", _glue),
    ("sst2", _glue),
    ("mrpc", _mrpc),
    ("cola", _cola),
    ("boolq", _boolq),
    ("mr", _lm_bff),
    ("trec", _trec),
    ("mr", _of_classes("rt-polarity.pos", "rt-polarity.neg")),
    ("mpqa", _of_classes("train.pos", "train.neg", "test.pos", "test.neg")),
    ("subj", _of_classes("quote.tok.gt9.5000", "plot.tok.gt9.5000")),
    ("sent140", _sent140),
    ("sent140", _leaf),
    ("sst2", _hub),
    ("sst2", _saved),
)
