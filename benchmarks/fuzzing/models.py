"""Models: one file of the embedded model damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from benchmarks.fuzzing.arrays import with_damaged_head
from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.small_runs import run_to_the_end, small_config
from benchmarks.fuzzing.values import any_value, drawn_group
from fedsim.simulation.preparation import prepare

BACKBONE = Path(__file__).parents[2] / "fedsim" / "assets" / "backbone"


def model_case(number: int, folder: Path) -> None:
    """Damage one file of the embedded model; load it, tokenise a text and take it through."""
    rng = Random(number)
    model = Path(shutil.copytree(BACKBONE, folder / "model"))
    path = model / rng.choice(
        ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    )
    if path.suffix == ".json" and rng.random() < 0.6:
        values = json.loads(path.read_bytes())
        for _ in range(rng.choice((1, 1, 2))):
            group = drawn_group(values, rng)
            group[rng.choice(list(group))] = any_value(rng)
        path.write_text(json.dumps(values))
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        path.write_bytes(with_damaged_head(path.read_bytes(), rng))
    else:
        path.write_bytes(damage(path.read_bytes(), rng))
    head = {"kind": rng.choice(("verbalizer", "classifier"))}
    config = small_config(folder / "run", model={"path": str(model), "head": head}, rounds=1)
    if rng.random() < 0.7:
        prepare(config)
    else:
        run_to_the_end(config)
