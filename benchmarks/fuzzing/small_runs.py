"""Valid inputs, created once for copying and damaging; and a small run."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

import fedsim
from fedsim.configuration.schema import Config, build_config
from fedsim.data.embedded import generate


@functools.cache
def workshop() -> Path:
    """Return the folder of valid inputs, created once for copying and damaging."""
    folder = Path(tempfile.mkdtemp(prefix="fedsim-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def small_data() -> Path:
    """Return a folder with 60 training and 16 validation examples of the embedded task reviews."""
    folder = workshop() / "data"
    folder.mkdir()
    train, validation = generate("reviews")
    for name, rows in (("train", train[:60]), ("validation", validation[:16])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small_config(output: Path, **changes: Any) -> Config:
    """Return the config of the small run, some top-level keys changed."""
    values: dict[str, Any] = {
        "name": "small",
        "rounds": 2,
        "executor": "local",
        "output": str(output),
        "data": {"path": str(small_data()), "task": "reviews", "max_length": 32},
        "partition": {"clients": 4},
        "sampling": {"clients_per_round": 2},
        "prompt": {"length": 2},
        "layers": {"choose": "all"},
        "client": {"epochs": None, "steps": 1, "fuse": "off"},
        "tracking": {"plots": False},
    }
    return build_config({**values, **changes})


@functools.cache
def finished_run() -> Path:
    """Return the folder of a finished run of two rounds."""
    folder = workshop() / "run"
    if not folder.exists():
        run_to_the_end(small_config(folder))
    return folder


def run_to_the_end(config: Config, resume: bool = False) -> None:
    """Run a config quietly."""
    with Path(os.devnull).open("w") as nowhere:
        fedsim.run(config, resume=resume, progress=False, console=Console(file=nowhere))
