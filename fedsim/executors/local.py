"""The local executor: everything in this process, without Ray; breakpoints work, and results have the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.generated import Generated
from fedsim.core.low_rank import LowRank
from fedsim.core.messages import ClientFailure, Evaluation, FuseTrial, ScoreReport, SpectrumReport, WorkGroup
from fedsim.core.method import Method
from fedsim.core.robust import RobustRule
from fedsim.executors.base import NONE_EARLIER, EvaluatedShard, Executor, Handle, Ranges, TrainedGroup
from server.broadcasting import Broadcasting
from server.core import Server, StepReport
from server.privacy.mechanism import Mechanism

if TYPE_CHECKING:
    from clients.worker import ClientWorker, WorkerInfo, WorkerSpec


class LocalServer:
    """The server in this process."""

    def __init__(self) -> None:
        self._server: Server | None = None

    @property
    def running(self) -> Server:
        """The server, once it is started."""
        if self._server is None:
            raise RuntimeError("the server has not been started")
        return self._server

    def start(
        self,
        method: Method,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
        rule: RobustRule | None = None,
        turns: tuple[np.ndarray, ...] = (),
        low_rank: tuple[LowRank, ...] = (),
        broadcasting: Broadcasting | None = None,
        mechanism: Mechanism | None = None,
        staleness_exponent: float | None = None,
    ) -> None:
        """Create or recreate the server."""
        rest = sample_rate, population_weight, rule, turns, low_rank, broadcasting, mechanism, staleness_exponent
        self._server = Server(method, vector_F, layers, *rest)

    def global_state(self, *version: int) -> Handle:
        """See :meth:`server.core.Server.global_state`."""
        return self.running.global_state(*version)

    def apply(self, round: int, order: tuple[int, ...], **named: Any) -> StepReport:
        """See :meth:`server.core.Server.apply`."""
        return self.running.apply(round, order, **named)

    def arrays(self) -> dict[str, np.ndarray]:
        """See :meth:`server.core.Server.arrays`."""
        return self.running.arrays()

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """See :meth:`server.core.Server.load_arrays`."""
        self.running.load_arrays(arrays)


class LocalExecutor(Executor):
    """Runs work groups one after another in this process; a handle is the value itself.

    Parameters
    ----------
    gpus
        ``ray.num_gpus_per_actor``: of several GPUs the model is spread over as many, otherwise it is on the first one.
    """

    def __init__(self, check_interrupt: Callable[[], None], gpus: float = 0.0) -> None:
        super().__init__(check_interrupt)
        self._gpus = gpus
        self._worker: ClientWorker | None = None
        self._server = LocalServer()
        self._threads_before: int | None = None

    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        import torch  # imported late: an executor is made before quick config mistakes are reported

        from clients.backbone.device import resolve_devices

        self._threads_before = torch.get_num_threads()
        self._worker = spec.build(resolve_devices(spec.device, self._gpus, gpu_granted=True))
        return [self._worker.info()]

    @property
    def server(self) -> LocalServer:
        return self._server

    def train(
        self,
        groups: Sequence[WorkGroup],
        state: Handle,
        client_states: Mapping[int, Handle],
        shards: Ranges = (),
        *,
        evaluate_first: bool = False,
        earlier: Mapping[int, Handle] = NONE_EARLIER,
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        evaluated = (EvaluatedShard(index, self._evaluate(state, shard)) for index, shard in enumerate(shards))
        if evaluate_first:
            yield from evaluated
        for group in groups:
            self._check_interrupt()
            old = [client_states[client] for client in group.clients]
            group, caches = self._with_cached(group)
            start = earlier.get(group.round, state)
            made = self._running_worker.train(group, start, *old, caches=caches)
            self._keep_cached(group, made.caches)
            self._server.running.fold(group.taken_in, made.update)
            yield TrainedGroup(group, made.reports, dict(zip(group.clients, made.states, strict=True)))
        yield from evaluated

    def try_fusing(self, state: Handle, clients: Sequence[int]) -> FuseTrial | ClientFailure:
        return self._running_worker.try_fusing(state, *clients)

    def evaluate(self, state: Handle, shards: Ranges, *, keep_predictions: bool = False) -> list[Evaluation]:
        return [self._evaluate(state, shard, keep_predictions) for shard in shards]

    def _evaluate(self, state: Handle, shard: tuple[int, int], keep_predictions: bool = False) -> Evaluation:
        self._check_interrupt()
        wanted, held = self.caches.wanted([shard]), self.caches.held([shard])
        evaluation, cached = self._running_worker.evaluate(
            state, *shard, held.get(shard), keep_predictions=keep_predictions
        )
        if wanted:
            self.caches.add(shard, cached)
        return evaluation

    def evaluate_clients(
        self,
        state: Handle,
        groups: Sequence[tuple[int, ...]],
        client_states: Mapping[int, Handle],
        personal: bool = True,
    ) -> list[Evaluation | ClientFailure]:
        results: list[Evaluation | ClientFailure] = []
        for clients in groups:
            self._check_interrupt()
            results += self._running_worker.evaluate_clients(
                state, *(client_states[client] for client in clients), fuse=self.fuse, personal=personal
            )
        return results

    def generate(self, state: Handle, ranges: Ranges) -> list[Generated]:
        made: list[Generated] = []
        for start, stop in ranges:
            self._check_interrupt()
            made.append(self._running_worker.generate(state, start, stop))
        return made

    def generate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Generated | ClientFailure]:
        results: list[Generated | ClientFailure] = []
        for clients in groups:
            self._check_interrupt()
            states = (client_states[client] for client in clients)
            results += self._running_worker.generate_clients(state, *states, fuse=self.fuse)
        return results

    def score(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[ScoreReport]:
        reports: list[ScoreReport] = []
        for clients in groups:
            self._check_interrupt()
            reports += self._running_worker.score(state, *clients)
        return reports

    def spectrum(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[SpectrumReport]:
        reports: list[SpectrumReport] = []
        for clients in groups:
            self._check_interrupt()
            reports += self._running_worker.spectrum(state, *clients)
        return reports

    def put(self, value: Any) -> Handle:
        return value

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        return list(handles)

    def close(self) -> None:
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)
        self._worker = self._threads_before = None
        self._server = LocalServer()

    @property
    def _running_worker(self) -> ClientWorker:
        if self._worker is None:
            raise RuntimeError("the executor has not been started")
        return self._worker
