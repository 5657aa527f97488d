"""The same work in BlazeFL; run by ``benchmarks.peers`` with the interpreter of BlazeFL's environment.

BlazeFL's way to use several processes is ProcessPoolClientTrainer, which makes a pool for every round, here with vectors in
shared memory. The pool is forked from the process that has loaded model and data, so that workers have both at once. The
average is left to the user; two calls of an evaluation share the validation examples, so that both workers are busy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blazefl.core import (
    BaseServerHandler,
    IPCMode,
    ProcessPoolClientTrainer,
    SHMHandle,
    process_tensors_in_object,
)

from benchmarks.peers.files import Events, Plan

WORKERS = 2


@dataclass
class Down:
    """What every client of a round gets."""

    vector_F: torch.Tensor
    round: int
    """Counted from 0."""
    work: str
    """Folder of the work; empty where vectors are sent to and fro."""


@dataclass
class Trained:
    """What a client sends."""

    vector_F: torch.Tensor | SHMHandle
    examples: int = 0


@dataclass
class Evaluated:
    """What a share of the validation examples gives."""

    loss_sum: float
    examples: int


class _Pool(ProcessPoolClientTrainer[Any, Down, int]):
    """What both kinds of calls have in common; a client's config is its number."""

    def __init__(self, manager: Any) -> None:
        self.num_parallels, self.device, self.device_count = WORKERS, "cpu", 0
        self.ipc_mode, self.stop_event = IPCMode.SHARED_MEMORY, manager.Event()
        self.cache: list[Any] = []

    def get_client_config(self, cid: int) -> int:
        return cid

    def uplink_package(self) -> list[Any]:
        package, self.cache = self.cache, []
        return package


class Training(_Pool):
    """Trains a cohort, or adds one to the vector of every client."""

    def __init__(self, manager: Any, size: int) -> None:
        super().__init__(manager)
        self._size = size

    def prepare_uplink_package_buffer(self) -> Trained:
        return Trained(torch.empty(self._size))

    @staticmethod
    def worker(config: int, payload: Down, device: str, stop_event: Any, *, shm_buffer: Trained) -> Trained:
        examples = 1
        if payload.work:
            from benchmarks.peers.work import plain_clients

            clients = plain_clients(payload.work)
            vector_F, examples = clients.train(payload.round, config, payload.vector_F.numpy())
            shm_buffer.vector_F.copy_(torch.from_numpy(vector_F))
        else:
            torch.add(payload.vector_F, 1.0, out=shm_buffer.vector_F)
        return process_tensors_in_object(Trained(shm_buffer.vector_F, examples), mode="replace")


class Evaluation(_Pool):
    """Evaluates the vector; a "client" is a share of the validation examples."""

    def prepare_uplink_package_buffer(self) -> Evaluated:
        return Evaluated(0.0, 0)

    @staticmethod
    def worker(config: int, payload: Down, device: str, stop_event: Any, *, shm_buffer: Evaluated) -> Evaluated:
        from benchmarks.peers.work import plain_clients

        counts = plain_clients(payload.work).evaluate(payload.vector_F.numpy(), config, WORKERS)
        return Evaluated(counts.loss_sum, counts.examples)


class Server(BaseServerHandler[Trained, Down]):
    """Federated averaging with given cohorts."""

    def __init__(self, plan: Plan, rounds: int, work: str) -> None:
        self.vector_F = torch.from_numpy(plan.start_F)
        self.round = 0
        self._plan, self._rounds, self._work = plan, rounds, work
        self._received: list[Trained] = []

    def downlink_package(self) -> Down:
        return Down(self.vector_F, self.round, self._work)

    def sample_clients(self) -> list[int]:
        cohort: list[int] = self._plan.cohorts_Rk[self.round].tolist()
        return cohort

    def if_stop(self) -> bool:
        return self.round == self._rounds

    def load(self, payload: Trained) -> bool:
        self._received.append(payload)
        if len(self._received) < len(self.sample_clients()):
            return False
        self.global_update(self._received)
        self._received = []
        self.round += 1
        return True

    def global_update(self, buffer: list[Trained]) -> None:
        total_F = torch.zeros_like(self.vector_F)
        for update in buffer:
            total_F.add_(update.vector_F, alpha=update.examples)
        self.vector_F = total_F / sum(update.examples for update in buffer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--work", type=Path, help="Folder of the work; without it vectors are sent to and fro.")
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--elements", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork")
    # Every vector in shared memory is an open file.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.work is None:
        plan, work = Plan.everyone(options.clients, options.rounds, options.elements), ""
    else:
        from benchmarks.peers.work import plain_clients

        plan, work = Plan.load(options.work), str(options.work)
        plain_clients(work)
    with multiprocessing.Manager() as manager:
        run(Server(plan, options.rounds, work), Training(manager, len(plan.start_F)), Evaluation(manager), options.out)


def run(server: Server, training: Training, evaluation: Evaluation, out: Path) -> None:
    """Run all rounds."""
    events = Events(out)
    while not server.if_stop():
        training.local_process(server.downlink_package(), server.sample_clients())
        for update in training.uplink_package():
            server.load(update)
        down, figures = server.downlink_package(), {}
        if down.work:
            evaluation.local_process(down, list(range(WORKERS)))
            parts = evaluation.uplink_package()
            figures["loss"] = sum(part.loss_sum for part in parts) / sum(part.examples for part in parts)
        events.round(server.round, **figures)
    events.end(server.vector_F.numpy())
