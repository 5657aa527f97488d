"""JSON by client, as FedLLM-Bench has it (Ye et al. 2024): an object with the list of rows of each client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fedsim.core.errors import DataError
from fedsim.data.examples import NumberedRows
from fedsim.data.text_rows import read_json_with_head

CLIENT = "client"
"""Column of a row that names its client."""
_HEAD = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\[\s*(?:\{|\])')
_MESSAGE = ({"role", "content"}, {"from", "value"})


def read_clients(path: Path, encoding: str | None) -> dict[str, list[dict[str, Any]]] | None:
    """Return the rows of each client in a file; None if it is no JSON by client.

    A list of messages is no list of rows, so a file with one dialogue is not by client.
    """
    value = read_json_with_head(path, encoding, _HEAD)
    if not isinstance(value, dict) or not all(map(_are_rows, value.values())):
        return None
    first: set[str] = set(next((row for rows in value.values() for row in rows), {}))
    return None if any(keys <= first for keys in _MESSAGE) else value


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def clients_rows(path: Path, value: dict[str, list[dict[str, Any]]]) -> NumberedRows:
    """Yield the rows of a file, client by client, each with its client's name in the column ``client``.

    Raises
    ------
    DataError
        If a row has such a column itself.
    """
    number = 0
    for client, rows in value.items():
        for row in rows:
            number += 1
            if CLIENT in row:
                raise DataError(
                    f"{path}: row {number} has a column {CLIENT!r}, where the keys of the file name the clients"
                )
            yield number, {**row, CLIENT: client}
