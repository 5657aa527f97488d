"""A study beside its runs one after another: ``fedsim compare`` against one ``fedsim run`` for each cell.

Both sides do the same work in one go, each with an empty cache of its own that its runs share, and end with the same bytes in
every prompt file, which is checked; ``client.fuse`` is given, since a trial of what is fastest could end differently.

    python -m benchmarks.study [--json FILE] [--repeats 3] [--study configs/studies/quickstart.yaml] [KEY=VALUE]...
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.measure import Row, compare, in_turn, present, seconds
from fedsim.study.cells import read_study

_TOGETHER, _APART = "fedsim compare", "fedsim run, one cell after another"


def together(study: Path, overrides: Sequence[str], folder: Path) -> None:
    """Run a study."""
    command = [sys.executable, "-m", "fedsim", "compare", str(study), *overrides, f"cache.folder={folder / 'cache'}"]
    subprocess.run([*command, "--output", str(folder / "study")], check=True, capture_output=True)


def apart(study: Path, overrides: Sequence[str], folder: Path) -> None:
    """Run each cell of a study by its own command."""
    for cell in read_study(study, overrides).cells():
        config = folder / "cell.yaml"
        config.write_text(cell.config.to_yaml(), encoding="utf-8")
        places = [f"output={folder / 'study' / cell.folder}", f"cache.folder={folder / 'cache'}"]
        subprocess.run([sys.executable, "-m", "fedsim", "run", str(config), *places], check=True, capture_output=True)


def prompts(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every prompt file of a study."""
    files = sorted((folder / "study" / "cells").rglob("prompt/*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def measure(study: Path, overrides: Sequence[str], repeats: int) -> list[Row]:
    """Measure both sides in turn, and check that they end with the same bytes."""
    made: dict[str, dict[str, str]] = {}

    def side(name: str) -> float:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            took = seconds(lambda: (together if name == _TOGETHER else apart)(study, overrides, folder))
            made[name] = prompts(folder)
        return took

    figures = in_turn({name: lambda name=name: side(name) for name in (_APART, _TOGETHER)}, repeats)  # type: ignore[misc]
    if made[_APART] != made[_TOGETHER] or not made[_APART]:
        raise SystemExit("the two sides differ in their prompt files")
    return compare("study", figures, "s", _APART)


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = 3,
    study: Annotated[Path, typer.Option(help="The study.")] = Path("configs/studies/quickstart.yaml"),
    fuse: Annotated[int, typer.Option(min=1, help="client.fuse of all runs.")] = 5,
) -> None:
    """Measure, and print the table."""
    rows = measure(study, [*(overrides or []), f"client.fuse={fuse}"], repeats)
    present(rows, records_file, f"{study}: all cells, the same bytes")


if __name__ == "__main__":
    typer.run(main)
