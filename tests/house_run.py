"""A tiny run of all that ``tests/plugins/house.py`` registers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support import ROOT

from fedsim.data.embedded import generate

HOUSE = ROOT / "tests" / "plugins" / "house.py"


def house_values(folder: Path) -> dict[str, Any]:
    """Make a model of the plug-in's family and data of its task in a folder; return the config's values that need it."""
    model, data = folder / "model", folder / "data"
    folder.mkdir(exist_ok=True)
    shutil.copytree(ROOT / "fedsim" / "assets" / "backbone", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "house-roberta"}))
    data.mkdir()
    for name, rows in zip(("train", "validation"), generate("reviews"), strict=True):
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) for row in rows[:60])
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "rounds": 2,
        "model": {"path": str(model)},
        "data": {"task": "moods", "path": str(data), "train_examples": None, "validation_examples": None},
        "partition": {"kind": "stripes", "clients": 12},
        "compression": {"down": {"kind": "grid"}},
        "params": {"stripes": {"width": 3}, "grid": {"step": 1e-4}},
        "layers": {"choose": "fixed", "fixed": [2, 3]},
        "client": {"fuse": 2},
    }
