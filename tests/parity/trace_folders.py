"""Where the numbers to agree with lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NAMES = ("golden", "own")
"""``golden``: traces of the published code, not part of the repository, skipped where they are not at hand. ``own``: small
fixtures of the same form (see ``make_fixtures.py``), always there."""


def folder_of(name: str, environment: Mapping[str, str]) -> Path:
    """Return a folder of traces; a folder that was asked for and is none fails, and is not skipped."""
    if name == "own":
        return HERE / "fixtures"
    given = environment.get("FEDSIM_GOLDEN")
    folder = Path(given) if given else HERE.parents[2] / "shared" / "golden"
    if (folder / "README.md").is_file():
        return folder
    if given:
        what = "has no README.md" if folder.is_dir() else "is no folder"
        pytest.fail(
            f"FEDSIM_GOLDEN={given} {what}; give a folder of traces with its README.md, as make_fixtures.py writes one, or "
            "unset FEDSIM_GOLDEN",
            pytrace=False,
        )
    pytest.skip("no traces of the published code here; set FEDSIM_GOLDEN to the folder that holds them")
