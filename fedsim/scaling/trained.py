"""Who was trained in which round, from a run's records: in buffered runs not the round that took them in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Trained:
    """What was trained in a round."""

    busy: tuple[float, ...] = ()
    """Seconds that each worker spent on clients, failed ones included."""
    clients: int = 0
    """Usable clients."""
    steps: int = 0
    """Their local optimizer steps."""


def read_trained(path: Path, rounds: int, *, buffered: bool) -> dict[int, Trained]:
    """Return what was trained in each round, counted from 1, as ``clients.parquet`` has it.

    Parameters
    ----------
    buffered
        Whether rounds are server steps, which take in what earlier ones have trained.
    """
    import pyarrow.parquet as pq

    columns = ["round", "node", "pid", "seconds", "num_steps", "status", *(["version"] if buffered else [])]
    table = pq.ParquetFile(path).read(columns=columns)
    round_R = table["round"].to_numpy().astype(np.int64)
    if buffered:
        round_R = calls_of(round_R, table["version"].to_numpy().astype(np.int64))
    ok_R = np.array(table["status"].to_pylist()) == "ok"
    steps_R = np.where(ok_R, table["num_steps"].to_numpy(), 0)
    busy: dict[int, dict[tuple[str, int], float]] = defaultdict(lambda: defaultdict(float))
    workers = zip(round_R.tolist(), *(table[name].to_pylist() for name in ("node", "pid", "seconds")), strict=True)
    for round, node, pid, seconds in workers:
        busy[round][node, pid] += seconds
    return {
        number: Trained(
            tuple(sorted(busy[number].values())),
            int(ok_R[round_R == number].sum()),
            int(steps_R[round_R == number].sum()),
        )
        for number in range(1, rounds + 1)
    }


def calls_of(round_R: np.ndarray, version_R: np.ndarray) -> np.ndarray:
    """Return the round in which each client of buffered rounds was trained.

    A step that takes in a client that has not trained has all train that have begun by then, whichever step takes them in.

    Parameters
    ----------
    round_R
        The step that took each client in, counted from 1.
    version_R
        Server steps done when it began.
    """
    calls, trained = [], -1
    for number in range(int(round_R.max(initial=0))):
        if (version_R[round_R == number + 1] > trained).any():
            trained = number
            calls.append(number)
    return 1 + np.array(calls, dtype=np.int64)[np.searchsorted(calls, version_R)] if calls else round_R
