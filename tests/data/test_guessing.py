"""What is guessed of a data file: how it is read, and which columns are text, label and clients; ties are left to the user."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.core.errors import DataError
from fedsim.data.guessing.profile import look
from fedsim.data.guessing.roles import choose_roles

WORDS = ["the", "soup", "was", "cold", "and", "the", "room", "was", "loud", "but", "the", "staff", "were", "kind"]


def prose(number):
    return f"{' '.join(WORDS[number % 5 : number % 5 + 6])} {number}"


ROWS = [
    {"id": f"r{n}", "review": prose(n), "sentiment": ("neg", "pos")[n % 2], "user_id": f"u{n % 6}"} for n in range(48)
]


def delimited(rows, delimiter=",", header=True):
    lines = [delimiter.join(rows[0])] if header else []
    return "\n".join([*lines, *(delimiter.join(f'"{value}"' for value in row.values()) for row in rows)]) + "\n"


def roles_of(path, **options):
    roles = choose_roles(look(path), **options)
    names = [tuple(column.name for column in role.columns) for role in (roles.text, roles.label)]
    return *names, roles.client and roles.client.columns[0].name


def table(tmp_path, **columns):
    """Return a JSON Lines file with the given columns and 40 rows."""
    rows = [{name: make(n) for name, make in columns.items()} for n in range(40)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "txt", "jsonl", "json", "parquet", "utf-16"])
def test_every_format_gives_the_same_parts(tmp_path, kind):
    path = tmp_path / {"semicolons": "data.csv", "utf-16": "data.csv"}.get(kind, f"data.{kind}")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        delimiter = {"semicolons": ";", "tsv": "\t", "txt": "|"}.get(kind, ",")
        text = delimited(ROWS, delimiter)
        path.write_text(
            text.replace('"', "") if kind == "tsv" else text, encoding="utf-16" if kind == "utf-16" else "utf-8"
        )
    profile = look(path)
    keys = {"semicolons": {"delimiter": ";"}, "txt": {"delimiter": "|"}, "utf-16": {"encoding": "utf-16"}}.get(kind, {})
    assert (profile.rows, profile.keys) == (48, keys)
    assert roles_of(path) == (("review",), ("sentiment",), "user_id")


def test_a_file_without_header_has_numbered_columns(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(delimited(ROWS, header=False))
    assert look(path).keys == {"header": False}
    with pytest.raises(DataError, match=r"2 \(such as 'neg'\) and 3 \(such as 'u0'\) may each be the label"):
        roles_of(path)
    assert roles_of(path, client="3") == (("1",), ("2",), "3")


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (
            {"premise": prose, "hypothesis": prose, "label": lambda n: n % 3},
            (("premise", "hypothesis"), ("label",), None),
        ),
        ({"title": prose, "text": prose, "y": lambda n: n % 2}, (("text",), ("y",), None)),
        ({"words": prose, "stars": lambda n: 1 + n % 5, "price": lambda n: n + 0.5}, (("words",), ("stars",), None)),
        ({"body": prose, "good": lambda n: n % 2 == 0}, (("body",), ("good",), None)),
        ({"body": prose, "label": lambda n: n % 2, "rating": lambda n: n % 5}, (("body",), ("label",), None)),
        ({"t": prose, "k": lambda n: "ab"[n % 2], "hospital": lambda n: n % 4}, (("t",), ("k",), "hospital")),
    ],
)
def test_what_columns_hold_and_are_called_says_what_they_are(tmp_path, columns, parts):
    assert roles_of(table(tmp_path, **columns)) == parts


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        (
            {"one": prose, "two": prose, "label": lambda n: n % 2},
            {},
            r"one \(such as .*\) and two .* may each be the text; choose with --text one",
        ),
        (
            {"t": prose, "a": lambda n: n % 2, "b": lambda n: n % 3},
            {},
            r"a \(such as '0'\) and b \(such as '0'\) may each be the label; choose with --label a",
        ),
        (
            {"t": prose, "label": lambda n: n % 2, "user": lambda n: n % 4, "device": lambda n: n % 5},
            {},
            r"user \(such as .*\) and device .* may each be the clients; choose with --client user or .*, or --client none",
        ),
        (
            {"t": prose, "n": lambda n: n},
            {},
            "has no label, .* beside its text: n has 40 different values in 40 rows; name the label",
        ),
        (
            {"n": lambda n: n, "label": lambda n: n % 2},
            {},
            "no column with running text among n, label; name it with --text",
        ),
        (
            {"t": prose, "label": lambda n: n % 2},
            {"label": "lable"},
            "--label: .* has no column 'lable'; it has t, label",
        ),
        ({"t": prose, "label": lambda n: n % 2}, {"label": "t", "text": ["t"]}, "t: one column cannot be two of"),
        ({"t": prose, "n": lambda n: 0.5 + n * 7}, {"label": "t", "text": ["n"]}, None),
        (
            {"t": prose, "one": lambda n: "x"},
            {"label": "one"},
            "--label: column one of .* has 1 different value, but classes",
        ),
    ],
)
def test_a_tie_or_a_gap_is_one_sentence_with_the_option(tmp_path, columns, options, said):
    path = table(tmp_path, **columns)
    if said is None:
        assert roles_of(path, **options)[0] == ("n",)
        return
    with pytest.raises(DataError, match=said):
        choose_roles(look(path), **options)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist"), ("", "is empty"), ("a,b\n", "holds no rows")],
)
def test_a_file_with_nothing_in_it_says_so(tmp_path, content, said):
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=said):
        look(path)
    with pytest.raises(DataError, match="is a folder; name one file in it"):
        look(tmp_path)
