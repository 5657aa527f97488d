"""LEAF's JSON (Caldas et al. 2018, arXiv 1812.01097): the examples by user, so that users are natural clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.core.errors import DataError, shown
from fedsim.data.examples import NumberedRows, Row
from fedsim.data.text_rows import read_json_with_head

USER, TEXT, LABEL = "user", "x", "y"
"""Columns of a row; if ``x`` is a list, its entries are numbered columns instead."""
_HEAD = re.compile(rb'\s*\{\s*"(?:users|num_samples|user_data|hierarchies)"\s*:')


def read_leaf(path: Path, encoding: str | None) -> dict[str, Any] | None:
    """Return the contents of a LEAF file; None if it is not one."""
    value = read_json_with_head(path, encoding, _HEAD)
    return value if isinstance(value, dict) and isinstance(value.get("user_data"), dict) else None


def leaf_rows(path: Path, value: dict[str, Any]) -> NumberedRows:
    """Yield the rows of a file, user by user; ``value`` is its contents."""
    return enumerate(_rows(path, value), start=1)


def _rows(path: Path, value: dict[str, Any]) -> Iterator[Row]:
    data = value["user_data"]
    counts = value.get("num_samples")
    users = value.get("users", list(data))
    if not isinstance(users, list) or not all(isinstance(user, str) and user in data for user in users):
        raise DataError(f"{path}: is not a LEAF file: users does not list the names in user_data")
    if len(set(users)) != len(data):
        raise DataError(f"{path}: users lists {len(set(users))} names, user_data has {len(data)}")
    for number, user in enumerate(users):
        held = data[user]
        texts, labels = (held.get(key) if isinstance(held, dict) else None for key in (TEXT, LABEL))
        if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
            raise DataError(f"{path}: user {shown(user)} has no lists x and y of the same length")
        if isinstance(counts, list) and counts[number : number + 1] != [len(texts)]:
            raise DataError(f"{path}: user {shown(user)} has {len(texts)} examples, not as many as num_samples says")
        for text, label in zip(texts, labels, strict=True):
            yield {**_columns(text), USER: user, LABEL: label}


def _columns(text: Any) -> dict[str, Any]:
    if isinstance(text, list):
        return {str(number): cell for number, cell in enumerate(text)}
    return {TEXT: text}
