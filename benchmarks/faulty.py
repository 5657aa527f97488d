"""Workers with injected faults: real signals, endless waits and memory use, at a chosen client and round.

Nothing in the simulator is replaced: a :class:`FaultySpec` takes the place of the workers' specification and strikes in the
worker's process while it trains, scores layers or evaluates.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import clients.training.group
from clients.spec import WorkerSpec
from clients.training.local_job import TrainingResult
from clients.worker import ClientWorker

Kind = Literal["kill", "raise", "hang", "nan", "shape", "memory"]


@dataclass(frozen=True)
class Fault:
    """A fault in a client's work."""

    kind: Kind
    """kill: SIGKILL of the worker's process; raise: the client's code raises; hang: it never returns; nan, shape: it returns
    NaN, or a vector that is too short; memory: it takes memory until it is stopped."""
    client: int
    strikes: Path
    """File that records strikes, one line with the time each, counted over all processes."""
    times: int = 1
    """Total number of strikes."""
    round: int = 0
    """First round, counted from 0, in which it strikes."""
    work: Literal["train", "score", "evaluate"] = "train"
    """Kind of work it strikes; nan and shape only in training."""

    def struck(self) -> list[float]:
        """Return the times of the strikes so far."""
        return [float(line) for line in self.strikes.read_text().split()] if self.strikes.exists() else []

    def strikes_now(self) -> bool:
        """Whether to strike now; records the strike."""
        if len(self.struck()) >= self.times:
            return False
        with self.strikes.open("a") as file:
            file.write(f"{time.time()}\n")
            file.flush()
            os.fsync(file.fileno())
        return True


@dataclass(frozen=True)
class FaultySpec(WorkerSpec):
    """A specification of faulty workers."""

    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(cls, spec: WorkerSpec, *faults: Fault) -> FaultySpec:
        """Return ``spec`` with faults."""
        own = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        return cls(**own, faults=faults)

    def build(self, device: str) -> ClientWorker:
        """Build a worker in whose process the faults strike."""
        install(self.faults)
        return super().build(device)


_train_clients = clients.training.group.train_clients
_score_one = ClientWorker._score_one
_of_some = ClientWorker._of_some


def install(faults: tuple[Fault, ...]) -> None:
    """Install the faults in this process, replacing earlier ones."""

    def strike(work: str, present: Collection[int], round: int) -> None:
        for fault in faults:
            due = fault.work == work and fault.kind in _BEFORE and fault.client in present and round >= fault.round
            if due and fault.strikes_now():
                _BEFORE[fault.kind](fault)

    def train_clients(backbone: Any, table: Any, jobs: Any, *arguments: Any, **settings: Any) -> list[TrainingResult]:
        here = {job.client: row for row, job in enumerate(jobs)}
        strike("train", here, settings["round"])
        results = _train_clients(backbone, table, jobs, *arguments, **settings)
        for fault in faults:
            due = fault.kind in _AFTER and fault.client in here and settings["round"] >= fault.round
            if due and fault.strikes_now():
                row = here[fault.client]
                results[row] = dataclasses.replace(results[row], vector_A=_AFTER[fault.kind](results[row].vector_A))
        return results

    def score_one(worker: Any, prompt_1LKHPD: Any, state: Any, client: int) -> Any:
        strike("score", [client], state.round)
        return _score_one(worker, prompt_1LKHPD, state, client)

    def of_some(worker: Any, parts: Any, state: Any, some: Any, act: Any) -> Any:
        strike("evaluate", [each.client for each in some], state.round)
        return _of_some(worker, parts, state, some, act)

    clients.training.group.train_clients = train_clients
    ClientWorker._score_one = score_one  # type: ignore[method-assign]
    ClientWorker._of_some = of_some  # type: ignore[method-assign]


def _kill(fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(fault: Fault) -> None:
    raise ValueError(f"client {fault.client} was told to fail")


def _hang(fault: Fault) -> None:
    while True:
        time.sleep(3600)


def _take_memory(fault: Fault) -> None:
    held = []
    while True:
        held.append(np.ones(2**25))  # 256 MiB, written to
        time.sleep(0.05)


_BEFORE = {"kill": _kill, "raise": _raise, "hang": _hang, "memory": _take_memory}
_AFTER = {"nan": lambda vector_A: np.full_like(vector_A, np.nan), "shape": lambda vector_A: vector_A[:-1]}
