"""A study of two arms and two seeds of the tiny run, for tests that run it."""

import hashlib
import io
from pathlib import Path

import yaml
from rich.console import Console
from support import tiny_values

STUDY = {
    "base": "base.yaml",
    "arms": {
        "fedpeptao": None,
        "fedavg": {"server.kind": "fedavg", "layers.choose": "all", "layers.score_batch_size": None},
    },
    "seeds": 2,
    "target": 0.5,
}
FEDAVG = {**STUDY, "arms": {"fedavg": STUDY["arms"]["fedavg"]}}


def silent():
    return Console(file=io.StringIO())


def written(folder, study=STUDY, **changes):
    """Write a study of the tiny run and its base; return the study's path."""
    values = tiny_values({"client": {"fuse": 2}, **changes})
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder / "study.yaml"


def prompts(folder):
    """Return the SHA-256 of each prompt file, by path within the cells' folder."""
    files = sorted(Path(folder).glob("**/prompt/*.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
