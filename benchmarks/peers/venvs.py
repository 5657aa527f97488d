"""A virtual environment for each peer: its exact version, and the same PyTorch, transformers and NumPy as fedsim."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from fedsim.core.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"flower": "flwr[simulation]==1.42.0", "pfl": "pfl[pytorch]==0.6.0", "blazefl": "blazefl==2.0.3"}
"""The newest versions of November 2026, but for blazefl: its 3.0.0 asks for Python 3.14."""
_ANY_PYTHON = ("blazefl",)
"""Installed whatever Python they ask for, and alone: blazefl 2 asks for 3.12 and uses nothing that 3.11 lacks; it needs PyTorch
only, which is there."""
_NEEDED = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "pydantic", "pydantic_core", "psutil")
"""What fedsim's model code needs, in the versions of constraints.txt; all else is the peer's own choice."""


def python_of(peer: str, folder: Path) -> Path:
    """Return the interpreter of a peer's environment, which is made if it is not there.

    Raises
    ------
    ResourceError
        If a package cannot be installed.
    """
    home = folder.absolute() / peer
    python, stamp = home / "bin" / "python", home / "installed"
    constraints = _constraints()
    wanted = hashlib.sha256(f"{PEERS[peer]}\n{constraints}".encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    _run(f"make the environment of {peer}", [sys.executable, "-m", "venv", "--clear", str(home)])
    chosen = home / "constraints.txt"
    chosen.write_text(constraints)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(chosen)]
    # torch comes first and pinned: asked for by another package, pip would take a build with gigabytes of CUDA.
    alone = ["--no-deps", "--ignore-requires-python", PEERS[peer]] if peer in _ANY_PYTHON else []
    for packages in (["torch"], [*([] if alone else [PEERS[peer]]), *_NEEDED], alone):
        if packages:
            _run(f"install {PEERS[peer]}", [*pip, *packages])
    stamp.write_text(wanted)
    return python


def _constraints() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.partition("==")[0] in _NEEDED)


def _run(what: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise ResourceError(f"cannot {what}: {lines[-1] if lines else f'exit status {done.returncode}'}")
