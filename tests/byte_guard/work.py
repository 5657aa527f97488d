"""Do all runs in this process: ``python -m byte_guard.work FILE`` writes their digests as JSON.

A digest is taken over what the prompt files hold, not over the files: their metadata name fedsim's version and the model's
path. It covers ``prompt/global.safetensors``, ``prompt/personal.safetensors`` where layers stay on the devices, and what a case
asks for beside them.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

import fedsim
from byte_guard.cases import BASE, CASES, Case

PROMPT_FILES = ("global.safetensors", "personal.safetensors")


def main() -> None:
    """Do the runs, one after another; one that fails is answered by its error, and the others go on."""
    answer = Path(sys.argv[1])
    names = sys.argv[2:] or list(CASES)
    digests = {}
    with tempfile.TemporaryDirectory(prefix="byte-guard-") as folder:
        for name in names:
            try:
                digests[name] = digest(name, CASES[name], Path(folder))
            except Exception as error:
                digests[name] = f"{type(error).__name__}: {error}"
    answer.write_text(json.dumps(digests))


def digest(name: str, case: Case, folder: Path) -> str:
    """Return the SHA-256 of what a case ends with."""
    run = _folder_of(name, folder)
    words = [_filled(word, folder) for word in (*BASE.split(), *case.words.split(), f"output={run}")]
    if case.stop_after is not None:
        _run([*words, f"rounds={case.stop_after}"], folder)
    summary = _run(words, folder, resume=case.stop_after is not None)
    sha = hashlib.sha256()
    for file in PROMPT_FILES:
        path = run / "prompt" / file
        if path.exists():
            sha.update(file.encode())
            _add_arrays(sha, load_file(path))
    if case.losses:
        _add_arrays(sha, {"losses": pq.read_table(run / "rounds.parquet")["global_loss"].to_numpy()})
    if case.share:
        _add_arrays(sha, {"share": np.float64(summary["share"])})
    return sha.hexdigest()


def _run(words: list[str], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Return the summary of a config run by fedsim's public function: the only place that knows how."""
    path = folder / "base.yaml"
    path.write_text("{}\n")
    return fedsim.run(path, words, resume=resume, progress=False)


def _filled(word: str, folder: Path) -> str:
    """Return a word with a path in place of ``{model:FAMILY}``, ``{run:NAME}`` or ``{data:dialogues}``."""
    match = re.fullmatch(r"(.+=)\{(model|run|data):([^}]+)\}", word)
    if match is None:
        return word
    if match[2] == "run":
        return match[1] + str(_folder_of(match[3], folder))
    if match[2] == "data":
        from byte_guard.dialogues import save_dialogues

        return match[1] + save_dialogues(folder / "data" / match[3])
    from byte_guard.models import save_model

    return match[1] + save_model(match[3], folder / "models" / match[3])


def _folder_of(name: str, folder: Path) -> Path:
    return folder / re.sub(r"\W+", "-", name)


def _add_arrays(sha: Any, arrays: dict[str, np.ndarray]) -> None:
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())


if __name__ == "__main__":
    main()
