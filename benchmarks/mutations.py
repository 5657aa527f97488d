"""Damaged inputs for ``benchmarks.fuzz``: bytes, config values and rows, drawn from one random generator.

Every function draws from the generator it is given and from nothing else, so a case is found again by its number.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.config import Config
from fedsim.config_errors import dotted_keys

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
"""The billion laughs: a list of 9^11 entries in 12 lines."""

FRAGMENTS: tuple[bytes, ...] = tuple(
    fragment.encode() if isinstance(fragment, str) else fragment
    for fragment in (
        LAUGHS,
        "name: &loop [*loop]\n",
        "seed: &loop {a: *loop}\n",
        "model: &m {path: embedded}\nclient: *m\n",
        "x: &x {rounds: 3}\n<<: *x\n",
        "<<: [1, 2]\n",
        "<<: {<<: {rounds: 1}}\n",
        "output: !!python/object/apply:os.system ['true']\n",
        "name: !!python/name:os.system\n",
        "seed: !!binary aGVsbG8=\n",
        "rounds: !!set {a, b}\n",
        "rounds: !!omap [a: 1]\n",
        "rounds: !!int x\n",
        "rounds: !!float x\n",
        "rounds: !!timestamp x\n",
        "name: !!bool maybe\n",
        "? [a, b]\n: c\n",
        "? {a: b}\n: c\n",
        "---\nrounds: 1\n",
        "...\n",
        "%YAML 9.9\n---\n",
        "seed: " + "9" * 5000 + "\n",
        "seed: 0x" + "f" * 5000 + "\n",
        "seed: 1_000\n",
        "seed: 0b2\n",
        "seed: 1:99:99\n",
        "seed: 2001-99-99\n",
        "client: {optimizer: {lr: 1e999}}\n",
        "client: {optimizer: {lr: -.inf}}\n",
        'name: "\\ud800"\n',
        'name: "\\x00"\n',
        'name: "\\u2028"\n',
        "k" * 20_000 + ": 1\n",
        "name: " + "v" * 20_000 + "\n",
        "[" * 2000,
        "{a: " * 2000,
        "- " * 2000,
        "a: \n" + "".join(" " * i + "a:\n" for i in range(1, 400)),
        "\t",
        "\n\t",
        "\ufeff",
        "\u2028",
        "\x85",
        "\x00",
        b"\xff\xfe",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        "\r",
        "\r\n",
        "\x1b[31m",
        "'",
        '"',
        "`",
        "@",
        "%",
        "|\n",
        ">\n",
        "# ",
        ": ",
        "- ",
        ",",
        "{",
        "}",
        "]",
        "null",
        "NaN",
        "-1",
        "1e400",
        "9" * 30,
    )
)

NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 7, 8, 10, 100, 1000, -1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    10**12, 10**30, 10**400, -(2**63), 0.0, -0.0, 0.1, 0.25, 0.5, 0.999999999, 1.0, 1.5, 1e-3, 1e-9, 1e-30, 1e-308, 5e-324,
    1e-400, 1e30, 1e308, 1.7976931348623157e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

WORDS: tuple[Any, ...] = (
    "", " ", "x", "0", "1", "-1", "1/3", "1/0", "0/1", "1e400", "nan/1", "inf", "1/1e400", "true", "null", "auto", "off",
    "none",
    "all_data", "pool", "per_client", "retry:0", "retry:3", "retry:99999999999", "raise", "drop", "embedded", "reviews",
    "topics", "sst2", "label", "author", "text", "a\nb", "a\r\nb", "\x00", "\u2028", "\ud800", "../x", "/", "/dev/null", "~",
    "~nobody/x", ".", "..", "CON", "a" * 300, "a/" * 3000, "b" * 30_000, "memory:/", "nope://x/y", "s3://",
    "file:///nonexistent/x",
    "http://[", "host:port", "{text}", "{text} <mask>", "<mask>", "%s%n", "\\", "'\"", "\x1b[31m", "é" * 100, "\U0001d518",
)  # fmt: skip

ODD: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], [1], [0, 1], [1, 1], [-1], [2**63], ["a", "b"], ["a", "a"], list(range(3000)),
    ["x" * 500] * 50, {"a": 1}, {"": None}, {"a": {"b": {"c": 1}}}, {"kind": "iid"}, {"name": "t", "fields": ["text"]},
)  # fmt: skip

UNKNOWN_KEYS = (
    "",
    "x",
    "lr",
    "rnds",
    "client.lr",
    "a\nb",
    "\u2028",
    "k" * 5000,
    "rounds ",
    "ROUNDS",
    "<<",
    "class",
    "__class__",
)

KEYS = tuple(dotted_keys(Config))


def damage(data: bytes, rng: Random) -> bytes:
    """Return bytes with one to four faults."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_FAULTS)(data, rng)
    return data[: 2**22]


def _flip(data: bytes, rng: Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _span(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, len(data))))


def _cut(data: bytes, rng: Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def _insert(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.7:  # at the start of a line, where it is most likely to be understood
        at = data.rfind(b"\n", 0, at) + 1
    return data[:at] + rng.choice(FRAGMENTS) + data[at:]


def _noise(data: bytes, rng: Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + rng.randbytes(min(stop - start, 64)) + data[stop:]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, stop = _span(data, rng)
    piece = data[start : min(stop, start + 200)]
    return data[:start] + piece * rng.choice((2, 3, 1000)) + data[stop:]


def _lines(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.insert(other, lines[one])
        case 1:
            lines[one], lines[other] = lines[other], lines[one]
        case 2:
            del lines[one]
        case 3:
            lines[one] = rng.choice((b"\t", b" ", b"  ", b"    ")) + lines[one]
        case _:
            lines[one] = lines[one].lstrip()
    return b"\n".join(lines)


def _encoded(data: bytes, rng: Random) -> bytes:
    text = data.decode("utf-8", errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1")), errors="replace")


_FAULTS = (_flip, _flip, _cut, _insert, _insert, _insert, _noise, _repeat, _lines, _lines, _encoded)


# -- configs -----------------------------------------------------------------------------------------------------------


def any_value(rng: Random, field: Any = None) -> Any:
    """Return a value for a key: often a word that it knows, or a plausible number; else anything."""
    known = words_of(field) if field is not None else []
    if known and rng.random() < 0.6:
        return rng.choice(known)
    usual = field.default if field is not None else None
    if isinstance(usual, int | float) and not isinstance(usual, bool) and rng.random() < 0.5:
        return rng.choice((usual + 1, usual * 2, usual // 2 if isinstance(usual, int) else usual / 2))
    return rng.choice(rng.choice((NUMBERS, NUMBERS, WORDS, ODD)))


def words_of(field: Any) -> list[Any]:
    """Return the words that a key knows, or true and false."""
    return _literals(field.annotation)


def _literals(annotation: Any) -> list[Any]:
    found: list[Any] = [True, False] if annotation is bool else []
    for inner in get_args(annotation):
        found += [inner] if isinstance(inner, str) else _literals(inner)
    return found


def change_keys(values: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Return config values with one to four keys set to something else, or added."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        name, field = rng.choice(KEYS)
        keys = name.split(".")
        if rng.random() < 0.08:
            keys[rng.randrange(len(keys))] = rng.choice(UNKNOWN_KEYS)
        target = values
        for key in keys[:-1]:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[keys[-1]] = any_value(rng, field)
    return values


def overrides(rng: Random) -> list[str]:
    """Return words such as stand on the command line."""
    words = []
    for _ in range(rng.choice((1, 2, 3))):
        name, field = rng.choice(KEYS)
        value = any_value(rng, field)
        try:
            text = json.dumps(value) if rng.random() < 0.7 else str(value)
        except ValueError:  # more digits than Python writes
            text = "9" * 400
        word = f"{name}={text}"
        if rng.random() < 0.2:
            word = damage(word.encode(errors="replace"), rng).decode("utf-8", errors="replace")
        words.append(word)
    return words


# -- data files --------------------------------------------------------------------------------------------------------

CELLS: tuple[Any, ...] = (
    "", " ", "\t", "\u00a0", "\x00", "a\x00b", "\ufeff", "\ud800", "a\nb", "a\r\nb", "\u2028", '"', '"a', 'a"b', "'", ",",
    "\\", "<mask>", "</s>", "{text}", "x" * 100_000, "word " * 5_000, "ü" * 1000, "\u200b", "\U0010ffff", "NaN", "nan",
    "null", "None",
    "-1", "1.0", "01", "1e0", "true", None, True, False, 0, 1, 2, -1, 1.0, 0.5, 2**63, 10**30, float("nan"), float("inf"),
    [], ["a"], {}, {"a": 1}, b"\xff",
)  # fmt: skip

COLUMNS = ("text", "label", "author", "Text", "text ", "", "texts", "a\nb", "l" * 5000, "0", "idx")


def rows(rng: Random, fields: Sequence[str], labels: Sequence[str]) -> list[dict[str, Any]]:
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
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE))
    writer = csv.writer(
        out, delimiter=delimiter, quoting=quoting, escapechar="\\" if quoting == csv.QUOTE_NONE else None
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
        if pa.types.is_string(array.type) and rng.random() < 0.1:
            kind = rng.choice(
                (pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.binary(), pa.large_binary())
            )
            array = array.cast(kind) if not pa.types.is_dictionary(kind) else array.dictionary_encode()
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


def task(rng: Random) -> str | dict[str, Any]:
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
                ["0", "0"], ["great"], ["great", "great"], ["", " "], ["a b", "c d e"], ["x" * 5000, "y"], ["terrible",
                "great", "fine"],
                "", "{text}", "<mask>", "{text}<mask>", "<mask>{text}", "{text} {text} <mask>", "{{text}} <mask>",
                "{text} <mask> <mask>", "word " * 300 + "{text} <mask>", "label", "author", "accuracy_f1", "matthews", None,
                3, {},
            )
        )  # fmt: skip
    if rng.random() < 0.1:
        del values[rng.choice(list(values))]
    return values
