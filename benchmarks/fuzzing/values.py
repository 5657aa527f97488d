"""Wrong, extreme and unlikely values for keys of a config, of JSON files, and of the heads of array files."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, get_args

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


def drawn_group(values: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Return the mapping itself or one inside it, at any depth."""
    group = values
    while (inner := [value for value in group.values() if isinstance(value, dict) and value]) and rng.random() < 0.6:
        group = rng.choice(inner)
    return group


def group_at(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the mapping that nested keys lead to; where they lead to none, an empty one is put."""
    for key in keys:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    return values
