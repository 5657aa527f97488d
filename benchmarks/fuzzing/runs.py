"""Runs: accepted configs run to the end, and damaged run folders that are resumed."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.arrays import with_damaged_head
from benchmarks.fuzzing.configs import change_keys
from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.small_runs import finished_run, run_to_the_end, small_config, small_data
from benchmarks.fuzzing.values import group_at
from fedsim.configuration.schema import build_config
from fedsim.core.errors import FedsimError

CAPS = {
    "rounds": 1, "group_size": 4, "prompt.length": 4, "partition.clients": 8, "partition.min_size": 3,
    "partition.max_tries": 20, "sampling.clients_per_round": 3, "client.epochs": 1, "client.steps": 2,
    "client.batch_size": 8, "client.threads": 2,
    "layers.spectrum.warmup_rounds": 1, "layers.spectrum.clients": 2, "layers.spectrum.batch_size": 4,
    "layers.spectrum.lanczos_steps": 4, "layers.spectrum.probes": 2, "layers.spectrum.directions": 2,
    "layers.score_batch_size": 8, "layers.score_clients": 2, "evaluation.batch_size": 16,
}  # fmt: skip
"""Largest sizes with which a config is run to the end."""

PUT = {
    "executor": "local", "model.path": "embedded", "model.package": None, "model.device": "cpu", "model.compile": False,
    "model.trust_remote_code": False, "tracking": {"plots": False}, "prompt.start_from": None, "tuner.start_from": None,
}  # fmt: skip
"""What a config that is run must say, whatever was drawn: this process, the embedded model, no pictures, no trackers."""


def run_case(number: int, folder: Path) -> None:
    """Run a config to the end, its sizes capped (:data:`CAPS`, :data:`PUT`), on 60 examples of the task reviews."""
    rng = Random(number)
    values: dict[str, Any] = build_config(_accepted(rng)).model_dump(mode="json")
    for dotted, most in CAPS.items():
        *parents, key = dotted.split(".")
        group = group_at(values, parents)
        if isinstance(group.get(key), int):  # a key without a use is not there
            group[key] = min(group[key], most)
    for dotted, value in PUT.items():
        *parents, key = dotted.split(".")
        group_at(values, parents)[key] = value
    longest = min(values["data"]["max_length"], 32)
    values["data"] = {"path": str(small_data()), "source": "files", "task": "reviews", "max_length": longest}
    values["output"] = str(folder / "run")
    run_to_the_end(build_config(values))


def _accepted(rng: Random) -> dict[str, Any]:
    """Return values that a config accepts, found by trying."""
    for _ in itertools.repeat(None, 50):
        values = change_keys({}, rng)
        try:
            build_config(values)
        except FedsimError:
            continue
        return values
    return {}


def resume_case(number: int, folder: Path) -> None:
    """Damage a file of a run folder, a checkpoint's checksum mended in half of the cases, and resume it for one more round."""
    rng = Random(number)
    run = Path(shutil.copytree(finished_run(), folder / "run"))
    files = sorted(path for path in run.rglob("*") if path.is_file())
    checkpoints = [path for path in files if path.parent.name == "checkpoints"]
    damaged: set[Path] = set()
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(checkpoints if rng.random() < 0.6 else files)
        if path in damaged:
            continue
        damaged.add(path)
        match rng.choice(("damage", "damage", "damage", "remove", "empty", "folder")):
            case "damage":
                arrays = path.suffix == ".safetensors" and rng.random() < 0.7
                path.write_bytes((with_damaged_head if arrays else damage)(path.read_bytes(), rng))
            case "remove":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case _:
                path.unlink()
                path.mkdir()
        checksum = path.with_suffix(".sha256")
        if path.suffix == ".safetensors" and path.is_file() and checksum not in damaged and rng.random() < 0.7:
            checksum.write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    run_to_the_end(small_config(run, rounds=3), resume=True)
