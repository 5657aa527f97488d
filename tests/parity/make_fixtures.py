"""Make a folder of parity fixtures: ``python tests/parity/make_fixtures.py FOLDER --seed 1``.

The folder has the form of the traces of the published code (same files, same names of arrays), so the same tests run
on both. Its numbers come from ``reference/``, a plain re-computation that uses nothing of the simulator.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from recipes import forward, partition, ratio, runs, scores, server

README = """# Parity fixtures of our own

Small traces in the form of those of the published FedPepTAO code, for when these are not at hand. Made by

    python tests/parity/make_fixtures.py FOLDER --seed {seed}

from `tests/parity/reference/`, a plain re-computation from the formulas of the algorithm as the published code runs it,
which uses nothing of the simulator. `tests/parity/test_reference.py` holds that re-computation against the traces of
the published code. No line and no number of the published code is in here.

| file | content |
| --- | --- |
| 01_server_* | {server_rounds} server rounds; `_unaliased` = every client steps from the same point |
| 02_layer_score | layer scores, consensus, ranking |
| 03_ratio | spectral density, ratio, threshold search, Lanczos on quadratics and networks (smaller than their names say) |
| 04_partition | label counts of clients |
| 05_forward, 05b_forward_hessian | tiny RoBERTa: weights, batch, scores, loss, prefix gradient, spectrum of its Hessian |
| 06_run_* | whole runs of {run_rounds} rounds, every client step included |

Left out, since no test needs them: `model_after` of 01 (a leftover of the published code's shared model), dev splits of 04.
"""


def make(folder: Path, seed: int) -> None:
    """Write all traces and the README."""
    torch.set_num_threads(1)  # one order of summation
    folder.mkdir(parents=True, exist_ok=True)
    passes = forward.traces(_rng(seed, "forward"))
    weights = {
        name.removeprefix("weights/"): array for name, array in passes["05_forward"][0].items() if "weights/" in name
    }
    traces = {
        **server.traces(_rng(seed, "server")),
        **scores.traces(_rng(seed, "scores")),
        **ratio.traces(_rng(seed, "ratio")),
        **partition.traces(_rng(seed, "partition")),
        **passes,
        **runs.traces(_rng(seed, "runs"), weights),
    }
    for name, (arrays, description) in traces.items():
        _save(folder, name, arrays, {**description, "seed": seed})
    readme = README.format(seed=seed, server_rounds=server.ROUNDS, run_rounds=runs.ROUNDS)
    (folder / "README.md").write_text(readme)


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode()])


def _save(folder: Path, name: str, arrays: dict[str, np.ndarray], description: dict) -> None:
    shapes = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in {**description, "arrays": shapes}.items()]
    (folder / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    make(given.folder, given.seed)
