"""The small files between the command and its sides; reading them needs neither PyTorch nor a model.

Shape suffixes: R rounds, k clients of a cohort, F entries of the exchanged vector.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_PLAN, _EVENTS, _VECTOR = "plan.npz", "events.jsonl", "vector.npy"


@dataclass(frozen=True)
class Plan:
    """Who takes part when, and what the first round starts from."""

    clients: int
    """Registered clients."""
    cohorts_Rk: np.ndarray
    """int64 clients of each round."""
    start_F: np.ndarray
    """float32 global vector before round 1."""

    @classmethod
    def everyone(cls, clients: int, rounds: int, elements: int) -> Plan:
        """Return the plan in which every client takes part in every round, starting from zeros."""
        cohorts_Rk = np.tile(np.arange(clients), (rounds, 1))
        return cls(clients, cohorts_Rk, np.zeros(elements, dtype=np.float32))

    def save(self, folder: Path) -> None:
        """Write the plan to a folder."""
        np.savez(folder / _PLAN, clients=self.clients, cohorts_Rk=self.cohorts_Rk, start_F=self.start_F)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read the plan of a folder."""
        with np.load(folder / _PLAN) as arrays:
            return cls(int(arrays["clients"]), arrays["cohorts_Rk"], arrays["start_F"])


class Events:
    """What a side leaves in its folder: one line of JSON for each round, and the vector after the last one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def round(self, number: int, **values: float) -> None:
        """Note the end of a round, counted from 1, with the wall time."""
        with (self._folder / _EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, "time": time.time(), **values}) + "\n")

    def end(self, vector_F: np.ndarray) -> None:
        """Keep the vector after the last round."""
        np.save(self._folder / _VECTOR, vector_F)

    def read(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Return the rounds and the last vector."""
        lines = (self._folder / _EVENTS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines], np.load(self._folder / _VECTOR)
