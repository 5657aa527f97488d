"""The digests on record, a table for each kind of CPU, and whether they can be compared on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .machine import made_with

PATH = Path(__file__).with_suffix(".json")
REMAKE = "python -m tests.byte_guard --remake (or make bytes)"


def tables() -> list[dict[str, Any]]:
    """Return all tables: ``made_with`` and ``digests`` of each."""
    return json.loads(PATH.read_text()) if PATH.exists() else []


def here() -> dict[str, str]:
    """Return the digests on record for such a machine; none if it has no table."""
    return next((each["digests"] for each in tables() if each["made_with"] == made_with()), {})


def write(digests: dict[str, str]) -> None:
    """Put this machine's digests on record, in place of those of such a CPU; those of others stay."""
    others = [each for each in tables() if each["made_with"]["cpu"] != made_with()["cpu"]]
    every = sorted([*others, {"made_with": made_with(), "digests": digests}], key=lambda each: each["made_with"]["cpu"])
    PATH.write_text(json.dumps(every, indent=2) + "\n")


def why_not_comparable() -> str | None:
    """Return why no table says anything on this machine, or None."""
    if here():
        return None
    made = made_with()
    known = "; ".join(_differing(made, each["made_with"]) for each in tables())
    return (
        f"the tables of bytes were made with {known}; here it is {_listed(made)}. To compare here, check out a commit that is "
        f"known to be right, remake it there with {REMAKE}, and come back"
    )


def _differing(here: dict[str, str], there: dict[str, str]) -> str:
    return _listed({key: there.get(key, "") for key, value in here.items() if there.get(key) != value})


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
