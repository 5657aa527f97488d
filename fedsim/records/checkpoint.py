"""Checkpoints of the complete run: atomic, checksummed, one file each.

A checkpoint is a safetensors file (arrays, and JSON for everything else) and a small ``.sha256`` file, written last. A
file whose checksum is missing or wrong was left incomplete by a crash and is skipped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedsim.core.errors import CheckpointError
from fedsim.core.messages import ClientState
from fedsim.records.events import replaced

_FORMAT = 3
"""Format 1 stored one hash of the configuration and one of all contents; 2 stored arrays in fixed fields."""
_COUNTS = ("client", "rounds", "steps")
_STATES, _OWNERS = "states/", "owners/"
"""Key prefixes of an array's name: its values over clients, and the clients that have it."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue as if it had never stopped."""

    round: int
    """Rounds completed."""
    layers: tuple[int, ...]
    config: dict[str, Any]
    """Configuration keys that results depend on; see :attr:`fedsim.configuration.schema.Config.identity_values`."""
    contents: dict[str, str]
    """Hashes of data and weights; see :attr:`fedsim.simulation.preparation.Prepared.contents`."""
    server: dict[str, np.ndarray]
    clients: tuple[ClientState, ...]
    """States of the clients that have trained, by ascending id."""
    totals: dict[str, Any] = field(default_factory=dict)
    """Running figures of the summary."""
    fuse: int | None = None
    """Clients that share passes through the backbone; None in checkpoints of older versions."""
    best_F: np.ndarray | None = None
    """Global vector of the best round so far (``selected_round`` of the totals); None before any evaluation."""
    learned: dict[str, np.ndarray] = field(default_factory=dict)
    """What the schedule of later rounds depends on; see :class:`fedsim.world.utility.Losses`."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``; return its path.

    Raises
    ------
    CheckpointError
        If the folder cannot be written.
    """
    path = folder / f"round-{checkpoint.round:06d}.safetensors"
    data = save(_arrays(checkpoint), metadata={"fedsim": _header(checkpoint)})
    try:
        # Not its parents: a run folder that was removed must not reappear without its records.
        folder.mkdir(exist_ok=True)
        _write_atomically(path, data)
        _write_atomically(path.with_suffix(".sha256"), hashlib.sha256(data).hexdigest().encode())
        for old in _files(folder)[keep:]:
            old.with_suffix(".sha256").unlink(missing_ok=True)
            old.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written: {error.strerror or error}; fix this, then continue with --resume"
        ) from error
    return path


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest undamaged checkpoint (None if there is none), and a message for each one skipped.

    Raises
    ------
    CheckpointError
        If all checkpoints are damaged, or the newest is from an earlier version.
    """
    skipped: list[str] = []
    files = _files(folder)
    for path in files:
        try:
            return _load(path), skipped
        except FileNotFoundError:
            skipped.append(f"{path.name} is incomplete (it has no checksum) and was skipped")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            skipped.append(f"{path.name} is damaged and was skipped: {error}")
    if files:
        raise CheckpointError(f"no checkpoint in {folder} can be used ({skipped[0]}); start a new run")
    return None, skipped


def newest_round(folder: Path) -> int | None:
    """Return the round of the newest checkpoint that has a checksum file, or None; reads no file."""
    numbers = [path.stem.removeprefix("round-") for path in _files(folder) if path.with_suffix(".sha256").exists()]
    return next((int(number) for number in numbers if number.isdecimal()), None)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"), reverse=True)


def _write_atomically(path: Path, data: bytes) -> None:
    with replaced(path) as file:
        file.write(data)


def _arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    arrays = {f"server/{name}": np.asarray(array, order="C") for name, array in checkpoint.server.items()}
    if checkpoint.best_F is not None:
        arrays["best/vector"] = np.asarray(checkpoint.best_F, order="C")
    arrays |= {f"learned/{name}": array for name, array in checkpoint.learned.items() if array.size}
    clients = checkpoint.clients
    for name in _COUNTS:
        arrays[f"clients/{name}"] = np.array([getattr(state, name) for state in clients], dtype=np.int64)
    for name in sorted({name for state in clients for name in state.arrays}):
        owners = [i for i, state in enumerate(clients) if name in state.arrays]
        arrays[f"{_STATES}{name}"] = np.stack([clients[i].arrays[name] for i in owners])
        arrays[f"{_OWNERS}{name}"] = np.array(owners, dtype=np.int64)
    return arrays


def _header(checkpoint: Checkpoint) -> str:
    return json.dumps(
        {
            "format": _FORMAT,
            "round": checkpoint.round,
            "layers": checkpoint.layers,
            "config": checkpoint.config,
            "contents": checkpoint.contents,
            "totals": checkpoint.totals,
            "fuse": checkpoint.fuse,
        },
        sort_keys=True,
    )


def _load(path: Path) -> Checkpoint:
    data = path.read_bytes()
    expected = path.with_suffix(".sha256").read_text().strip()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError("its checksum is wrong")
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["fedsim"])
        if header["format"] < _FORMAT:
            raise CheckpointError(
                f"{path} was written by an earlier version of fedsim (checkpoint format {header['format']}, this one reads "
                f"{_FORMAT}); continue with that version, or set another output"
            )
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    server = {name.removeprefix("server/"): a for name, a in arrays.items() if name.startswith("server/")}
    return Checkpoint(
        round=header["round"],
        layers=tuple(header["layers"]),
        config=header["config"],
        contents=header["contents"],
        server=server,
        clients=_client_states(arrays),
        totals=header["totals"],
        fuse=header.get("fuse"),
        best_F=arrays.get("best/vector"),
        learned={name.removeprefix("learned/"): a for name, a in arrays.items() if name.startswith("learned/")},
    )


def _client_states(arrays: dict[str, np.ndarray]) -> tuple[ClientState, ...]:
    numbers = zip(*(arrays[f"clients/{name}"].tolist() for name in _COUNTS), strict=True)
    counts = [dict(zip(_COUNTS, row, strict=True)) for row in numbers]
    kept: list[dict[str, np.ndarray]] = [{} for _ in counts]
    for key in arrays:
        if key.startswith(_STATES):
            name = key.removeprefix(_STATES)
            for row, owner in enumerate(arrays[f"{_OWNERS}{name}"].tolist()):
                kept[owner][name] = arrays[key][row]
    return tuple(ClientState(**own, arrays=tensors) for own, tensors in zip(counts, kept, strict=True))
