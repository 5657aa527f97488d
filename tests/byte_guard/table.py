"""The digests on record, and whether they can be compared on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from .machine import made_with

PATH = Path(__file__).with_suffix(".json")
REMAKE = "python -m tests.byte_guard --remake (or make bytes)"


def read() -> dict[str, dict[str, str]]:
    """Return ``made_with`` and ``digests``; both empty before the table is first made."""
    return json.loads(PATH.read_text()) if PATH.exists() else {"made_with": {}, "digests": {}}


def write(digests: dict[str, str]) -> None:
    """Put digests on record."""
    PATH.write_text(json.dumps({"made_with": made_with(), "digests": digests}, indent=2) + "\n")


def why_not_comparable() -> str | None:
    """Return why the table says nothing on this machine, or None."""
    made, here = read()["made_with"], made_with()
    differing = [f"{key} {made.get(key)}, here {value}" for key, value in here.items() if made.get(key) != value]
    if not differing:
        return None
    return (
        f"the table of bytes was made with {'; '.join(differing)}. To compare here, check out a commit that is known to be "
        f"right, remake it there with {REMAKE}, and come back"
    )
