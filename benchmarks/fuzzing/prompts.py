"""Prompt files and PEFT adapters, damaged, to predict with or to start a run from."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from random import Random

from benchmarks.fuzzing.arrays import with_damaged_head
from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.small_runs import finished_run, run_to_the_end, small_config, workshop
from benchmarks.fuzzing.values import any_value
from fedsim.prompts.prompted_model import load_prompt


def prompt_case(number: int, folder: Path) -> None:
    """Damage a prompt file; predict with it, or start a run from it."""
    rng = Random(number)
    path = folder / "global.safetensors"
    data = (finished_run() / "prompt" / "global.safetensors").read_bytes()
    path.write_bytes(with_damaged_head(data, rng) if rng.random() < 0.8 else damage(data, rng))
    if rng.random() < 0.6:
        load_prompt(path).predict(["the soup was cold"])
    else:
        _start_from(path, folder)


@functools.cache
def adapter() -> Path:
    """Return the folder of a PEFT adapter."""
    from fedsim.prompts.peft_adapter import export_peft

    folder, output = workshop() / "paper", workshop() / "adapter"
    if output.exists():
        return output
    run_to_the_end(small_config(folder, rounds=1, prompt={"length": 2, "position_offset": "paper"}))
    return export_peft(folder, output)


def peft_case(number: int, folder: Path) -> None:
    """Damage a PEFT adapter and start a run from it."""
    rng = Random(number)
    copied = Path(shutil.copytree(adapter(), folder / "adapter"))
    path = copied / rng.choice(("adapter_config.json", "adapter_config.json", "adapter_model.safetensors"))
    if path.suffix == ".json" and rng.random() < 0.7:
        values = json.loads(path.read_bytes())
        values[rng.choice(list(values))] = any_value(rng)
        path.write_text(json.dumps(values))
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        path.write_bytes(with_damaged_head(path.read_bytes(), rng))
    else:
        path.write_bytes(damage(path.read_bytes(), rng))
    _start_from(copied, folder, position_offset=rng.choice(("paper", "none")))


def _start_from(path: Path, folder: Path, **keys: str) -> None:
    run_to_the_end(small_config(folder / "run", rounds=1, prompt={"length": 2, "start_from": str(path), **keys}))
