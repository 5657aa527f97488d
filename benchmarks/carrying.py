"""Orchestration alone: every client receives the global vector, adds one and returns it, through fedsim's own rounds.

Nothing is trained; everything else is as in any run: cohorts, work groups, actors, client reports, group sums and the server
step. Only the worker differs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clients.spec import WorkerInfo
from clients.training.local_job import Parts
from clients.training.sums import GroupSums
from fedsim.core.finite import is_finite
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.messages import ClientReport, ClientState, GlobalState, WorkGroup
from fedsim.core.method import ClientRound, Method
from fedsim.core.returns import TrainReturns
from fedsim.executors.base import Executor, Handle
from fedsim.simulation.client_states import ClientStates
from fedsim.simulation.round import Draw, Round
from fedsim.world.devices import Devices
from server.config import SamplingConfig


@dataclass(frozen=True)
class AddOneSpec:
    """Specification of :class:`AddOneWorker`, in place of :class:`clients.spec.WorkerSpec`."""

    full: VectorLayout
    sizes_N: np.ndarray
    """int64 number of examples per client: its weight."""
    device: str = "cpu"
    keeps_state: bool = False

    @classmethod
    def of(cls, clients: int, elements: int) -> AddOneSpec:
        """Return the specification for ``clients`` of unequal weight and a vector of ``elements``, a multiple of 200."""
        geometry = PromptGeometry(num_layers=1, num_kv_heads=1, prompt_length=elements // 200, head_dim=100)
        return cls(VectorLayout.full(geometry), 1 + np.arange(clients) % 20)

    @property
    def train_sizes(self) -> np.ndarray:
        """See :class:`clients.spec.WorkerSpec`."""
        return self.sizes_N

    @property
    def nbytes(self) -> int:
        """Bytes stored for the workers."""
        return self.sizes_N.nbytes

    def build(self, device: str) -> AddOneWorker:
        """Return a worker."""
        return AddOneWorker(self)


class AddOneWorker:
    """A worker whose clients add one to the vector; implements the interface of :class:`clients.worker.ClientWorker`."""

    def __init__(self, spec: AddOneSpec) -> None:
        torch.set_num_threads(1)
        self._spec = spec
        self._local_F = np.empty(spec.full.size, np.float32)

    def info(self) -> WorkerInfo:
        """Return where this worker runs."""
        return WorkerInfo(socket.gethostname(), os.getpid(), "cpu", 1, self._spec.full, max_tokens=0)

    def train(
        self,
        group: WorkGroup,
        state: GlobalState,
        *client_states: ClientState,
        caches: Mapping[int, Any] | None = None,
    ) -> TrainReturns:
        """Let each client of the group add one; return reports, sums and new states."""
        parts = Parts.of(self._spec.full, state.layers, keep_local=False)
        sums = GroupSums(group, parts.exchanged.size)
        reports = []
        for old in client_states:
            # A client's vector takes the memory of the one before, which is added by then: it is still in the cache.
            local_F = np.add(state.vector_F, np.float32(1.0), out=self._local_F)
            size = int(self._spec.sizes_N[old.client])
            report = ClientReport(
                client=old.client,
                round=state.round,
                num_examples=size,
                num_steps=1,
                bytes_down=state.vector_F.nbytes,
                bytes_up=local_F.nbytes,
                node=socket.gethostname(),
                pid=os.getpid(),
            )
            if not is_finite(local_F):
                raise ValueError(f"client {old.client} returned a vector that is not finite")
            sums.add((report, ClientRound(None, size, 1, state.vector_F, vector_F=local_F)))
            reports.append(report)
        return TrainReturns(tuple(reports), sums.update(), client_states)


class Carrying:
    """Rounds in which clients add one.

    Parameters
    ----------
    executor
        Started and closed by this object.
    cohort_size
        Clients of a round; all of them if not given.
    devices
        The clients' devices; None without a clock.
    """

    def __init__(
        self,
        executor: Executor,
        clients: int,
        elements: int,
        group_size: int,
        cohort_size: int | None = None,
        devices: Devices | None = None,
    ) -> None:
        self.clients, self.elements = clients, elements
        self.cohort_size = cohort_size or clients
        self.rounds = 0
        self._executor = executor
        self._spec = AddOneSpec.of(clients, elements)
        sampling = SamplingConfig(clients_per_round=self.cohort_size)
        self._draw = Draw(sampling, 0, group_size, self._spec.sizes_N, np.ones(clients), devices=devices)
        self._states = ClientStates(clients)
        self._state: Handle = None

    def start(self) -> list[WorkerInfo]:
        """Start workers and server; return where the workers run."""
        workers = self._executor.start(self._spec)  # type: ignore[arg-type]  # not the spec of a run
        vector_F = np.zeros(self.elements, np.float32)
        weight = float(self._spec.sizes_N.sum())
        self._executor.server.start(Method(), vector_F, (0,), self.cohort_size / self.clients, weight)
        self._state = self._executor.server.global_state()
        return workers

    def round(self) -> list[ClientReport]:
        """Do a round as a run does it; return the clients' reports."""
        round = Round(self.rounds, self._draw, self._executor)
        for _ in round.train(self._state, self._states):
            pass
        reports = round.reports()
        round.step()
        self._states.commit(round.trained())
        self._state = self._executor.server.global_state()
        self.rounds += 1
        return reports

    def check(self) -> None:
        """Raise unless every round added one, as proof that the work was done."""
        (state,) = self._executor.get([self._state])
        if state.round != self.rounds or not np.array_equal(state.vector_F, np.full(self.elements, self.rounds)):
            raise AssertionError(f"after {self.rounds} rounds the vector holds {state.vector_F[:3]} ...")

    def close(self) -> None:
        """Stop workers and server."""
        self._executor.close()
