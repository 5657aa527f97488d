"""Data files and definitions of tasks: wrong cells and columns, damaged bytes, every format that is read."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.layouts import KEYS
from fedsim.configuration.schema import build_config
from fedsim.data.tasks import resolve_task
from fedsim.data.tokenize import tokenize
from fedsim.simulation.preparation import partition_data

EXTENSIONS = (
    "csv", "csv", "tsv", "jsonl", "jsonl", "json", "parquet", "parquet", "arrow", "arrow", "csv.gz", "jsonl.gz",
)  # fmt: skip
CELLS: tuple[Any, ...] = (
    "", " ", "\t", "\u00a0", "\x00", "a\x00b", "\ufeff", "\ud800", "a\nb", "a\r\nb", "\u2028", '"', '"a', 'a"b', "'", ",",
    "\\", "<mask>", "</s>", "{text}", "x" * 200_000, "word " * 5_000, "ü" * 1000, "\u200b", "\U0010ffff", "NaN", "nan",
    "null", "None",
    "-1", "1.0", "01", "1e0", "true", None, True, False, 0, 1, 2, -1, 1.0, 0.5, 2**63, 10**30, float("nan"), float("inf"),
    [], ["a"], {}, {"a": 1}, b"\xff",
)  # fmt: skip

QUOTING: tuple[dict[str, Any], ...] = (
    {"quoting": csv.QUOTE_MINIMAL},
    {"quoting": csv.QUOTE_ALL},
    {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
)
COLUMNS = ("text", "label", "author", "Text", "text ", "", "texts", "a\nb", "l" * 5000, "0", "idx")


def data_case(number: int, folder: Path) -> None:
    """Write a training and a validation file, one of them damaged, and a task; read, deal out and tokenise them."""
    rng = Random(number)
    task = drawn_task(rng)
    fields, labels = _shape(task)
    damaged = rng.randrange(2)
    for place, stem in enumerate(("train", rng.choice(("validation", "dev", "test")))):
        path = folder / f"{stem}.{rng.choice(EXTENSIONS)}"
        found = drawn_rows(rng if place == damaged else Random(7), fields, labels)
        write_rows(path, found, rng if place == damaged else Random(7))
        if place == damaged and rng.random() < 0.5:
            path.write_bytes(damage(path.read_bytes(), rng))
    by_column = rng.random() < 0.3
    source: dict[str, Any] = {"path": str(folder), "task": task, "on_bad_row": rng.choice(("raise", "skip"))}
    dealt: dict[str, Any] = {"clients": 2}
    if by_column:
        dealt |= {"kind": "by_column", "column": rng.choice(("author", "author", "label", "text", "none"))}
    else:
        dealt |= {"kind": rng.choice(("iid", "dirichlet_label", "dirichlet_class", "label_shards"))}
    if rng.random() < 0.2:
        key = rng.choice(list(KEYS))
        source[key] = rng.choice(KEYS[key])
    config = build_config({"data": source, "partition": dealt, "sampling": {"clients_per_round": 1}})
    data = partition_data(config)
    if rng.random() < 0.3:
        task_config = resolve_task(config.data.task)
        for examples in (data.dataset.train, data.dataset.validation):
            tokenize(examples, task_config, _tokenizer(), head_kind="verbalizer", causal=False, max_length=64)


def _shape(task: str | dict[str, Any]) -> tuple[list[str], list[str]]:
    if isinstance(task, str):
        known = resolve_task(task)
        return list(known.fields), list(known.labels)
    fields = task.get("fields")
    if not isinstance(fields, list) or not fields or not all(isinstance(name, str) for name in fields):
        fields = ["text"]
    return fields, ["0", "1"]


@functools.cache
def _tokenizer() -> Any:
    from clients.backbone.loading import load_tokenizer
    from clients.config import ModelConfig

    return load_tokenizer(ModelConfig())


def drawn_rows(rng: Random, fields: Sequence[str], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return a few rows of a task, some cells and columns wrong."""
    many = rng.choice((0, 1, 2, 12, 12, 12, 12, 300))
    words = ("good", "bad", "fine", "dull", "the film was", "and so on")
    found = [
        {
            **{name: " ".join(rng.choices(words, k=5)) for name in fields},
            "label": labels[i % len(labels)],
            "author": f"a{i % 4}",
        }
        for i in range(many)
    ]
    for _ in range(rng.choice((0, 0, 1, 1, 3))):
        if found:
            row = found[rng.randrange(len(found))] if rng.random() < 0.7 else found[0]
            row[rng.choice((*fields, "label", "author"))] = rng.choice(CELLS)
    if found and rng.random() < 0.15:
        old, new = rng.choice((*fields, "label", "author")), rng.choice(COLUMNS)
        whole = rng.random() < 0.7
        found = [
            {new if k == old else k: v for k, v in row.items()} if whole or i % 2 else row
            for i, row in enumerate(found)
        ]
    return found


def write_rows(path: Path, found: list[dict[str, Any]], rng: Random) -> None:
    """Write rows in the format of the file's extension, as far as it can hold them."""
    name = path.name.removesuffix(".gz")
    columns = list(dict.fromkeys(key for row in found for key in row)) or ["text", "label"]
    if name.endswith((".csv", ".tsv")):
        text = _delimited(found, columns, "," if name.endswith(".csv") else "\t", rng)
    elif name.endswith((".json", ".jsonl")):
        array = name.endswith(".json") and rng.random() < 0.7
        lines = [json.dumps(row, default=str, ensure_ascii=rng.random() < 0.5) for row in found]
        text = f"[{','.join(lines)}]" if array else "\n".join(lines) + "\n"
    else:
        path.write_bytes(_arrow(found, columns, name, rng))
        return
    data = text.encode(rng.choice(("utf-8",) * 8 + ("utf-16", "latin-1", "utf-8-sig")), errors="replace")
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


def _delimited(found: list[dict[str, Any]], columns: list[str], delimiter: str, rng: Random) -> str:
    if rng.random() < 0.05:
        columns = [*columns, columns[0]]
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter=delimiter, lineterminator=rng.choice(("\r\n", "\n", "\r")), **rng.choice(QUOTING)
    )
    writer.writerow(columns)
    writer.writerows([row.get(name) for name in columns] for row in found)
    return out.getvalue()


def _arrow(found: list[dict[str, Any]], columns: list[str], name: str, rng: Random) -> bytes:
    arrays = []
    for column in columns:
        values = [row.get(column) for row in found]
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError):
            array = pa.array([None if v is None else str(v).encode(errors="replace").decode() for v in values])
        if pa.types.is_struct(array.type) and not array.type.num_fields:
            array = pa.nulls(len(array))  # Parquet has no such type
        if pa.types.is_string(array.type) and rng.random() < 0.15:
            array = _other_type(array, rng)
        arrays.append(array)
    names = [column.encode(errors="replace").decode() for column in columns]
    if rng.random() < 0.05:
        arrays, names = [*arrays, arrays[0]], [*names, names[0]]
    feature = rng.choice(
        ({"_type": "ClassLabel", "names": ["0", "1"]}, {"_type": "ClassLabel"}, {"_type": "ClassLabel", "names": 3})
    )
    about = rng.choice(
        (
            json.dumps({"info": {"features": {"label": feature}}}),
            "[]",
            "{",
            '{"info": null}',
            '{"info": {"features": 3}}',
        )
    )
    table = pa.Table.from_arrays(arrays, names=names)
    if rng.random() < 0.3:
        table = table.replace_schema_metadata({"huggingface": about})
    sink = io.BytesIO()
    if name.endswith(".parquet"):
        pq.write_table(table, sink)
    else:
        opened = pa.ipc.new_file if rng.random() < 0.5 else pa.ipc.new_stream
        with opened(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _other_type(array: Any, rng: Random) -> Any:
    """Return texts as another type of Arrow's."""
    match rng.choice(("dictionary", "json", "broken json", "cast")):
        case "dictionary":
            return array.dictionary_encode()
        case "json":
            values = [None if value is None else json.dumps(value) for value in array.to_pylist()]
            return pa.ExtensionArray.from_storage(pa.json_(), pa.array(values, pa.string()))
        case "broken json":
            return pa.ExtensionArray.from_storage(pa.json_(), array)
    return array.cast(
        rng.choice((pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view()))
    )


def drawn_task(rng: Random) -> str | dict[str, Any]:
    """Return a built-in task, or the definition of one's own, more often right than wrong."""
    if rng.random() < 0.5:
        return rng.choice(("sst2", "sst2", "rte", "reviews"))
    values: dict[str, Any] = {
        "name": "own",
        "fields": ["text"],
        "labels": ["0", "1"],
        "template": "{text} . It was <mask> .",
        "label_words": ["terrible", "great"],
    }
    for _ in range(rng.choice((0, 1, 2))):
        key = rng.choice(("name", "fields", "label_field", "labels", "template", "label_words", "metric"))
        values[key] = rng.choice(
            (
                [], ["text"], ["text", "author"], ["text", "text"], ["a\nb"], ["0", "1", "2"], [0, 1], [True, False],
                [0.0, 1.0], ["text"] * 17, ["0", "0"], ["great"], ["great", "great"], ["", " "], ["a b", "c d e"],
                ["x" * 5000, "y"], ["terrible", "great", "fine"],
                "", "{text}", "<mask>", "{text}<mask>", "<mask>{text}", "{text} {text} <mask>", "{{text}} <mask>",
                "{text} <mask> <mask>", "word " * 300 + "{text} <mask>", "label", "author", "accuracy_f1", "matthews", None,
                3, {},
            )
        )  # fmt: skip
    if rng.random() < 0.1:
        del values[rng.choice(list(values))]
    return values
