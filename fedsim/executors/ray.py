"""Work groups on Ray actors.

What moves: one specification object at the start, one broadcast object a round, and references. The driver owns every
object, client states included, so an actor that dies takes nothing with it but the group it was working on, and that
group is sent to its successor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ResourceError
from fedsim.core.messages import Evaluation, FuseTrial, ScoreReport, SpectrumReport, WorkGroup
from fedsim.executors.base import EvaluatedShard, Executor, Handle, InOrder, TrainedGroup
from fedsim.executors.cluster import connect, free_resources
from fedsim.executors.config import RayConfig
from fedsim.executors.dispatch import POLL_SECONDS, SYSTEM_ERRORS, Call, Dispatcher, Done, first_line, task_error
from fedsim.executors.plan import ActorPlan, plan_actors
from fedsim.interrupt import retake_signals

if TYPE_CHECKING:
    import numpy as np

    from clients.worker import WorkerInfo, WorkerSpec
    from server.config import ServerConfig
    from server.core import StepReport

_FOLD_BYTES, _FOLD_UPDATES = 32 * 2**20, 16
"""Sums that are held back before they are sent to the server, at most: a call each would cost more than they do."""


class RayExecutor(Executor):
    """Runs work groups on a fixed set of actors.

    Parameters
    ----------
    config
        The ``ray`` section.
    threads
        CPU threads of a worker.
    population
        Number of clients.
    note
        Called with sentences for the user: sharing of CPUs, replaced actors.
    """

    def __init__(
        self,
        config: RayConfig,
        threads: int,
        population: int,
        check_interrupt: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        super().__init__(check_interrupt)
        self._config = config
        self._threads = threads
        self._population = population
        self._note = note
        self._connected = False
        self._starter: ThreadPoolExecutor | None = None
        self._opening: Future[ActorPlan]
        self._actors: dict[int, Any] = {}
        self._server: Any = None
        self._spec_ref: ray.ObjectRef | None = None
        self._device = "auto"
        self._keeps_state = True
        self._dispatcher = Dispatcher(config, self._actors, self._successor, lambda: self._check_interrupt(), note)
        self._folds: deque[ray.ObjectRef] = deque()
        """Calls that fold the round's sums; their errors come to light at the latest when the server steps."""
        self._unfolded: list[Handle] = []
        """Sums of the round that come next and were not sent to the server yet."""
        self._fold_every = 1

    # -- start and end -----------------------------------------------------------------------------------------------

    def begin(self, spec_nbytes: int, modules: tuple[str, ...] = ()) -> None:
        # Imported here and not in the thread, so that no two threads import the same packages at once.
        from clients.actor import ClientActor
        from server.aggregator import AggregatorActor

        # The thread lives until the end: the system ends Ray's processes together with the thread that started them.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="ray-starter")
        self._opening = self._starter.submit(self._open, spec_nbytes, modules, ClientActor, AggregatorActor)

    def _open(self, spec_nbytes: int, modules: tuple[str, ...], actor_class: Any, server_class: Any) -> ActorPlan:
        """Connect to Ray and create all actors; they wait for their specification."""
        self._connected = connect(self._config, spec_nbytes)
        plan = plan_actors(self._config, self._threads, self._population, free_resources())
        self._actor_class = actor_class.options(
            num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, scheduling_strategy="SPREAD"
        )
        self._actors.update({slot: self._actor_class.remote(modules) for slot in range(plan.count)})
        self._server = server_class.remote()
        return plan

    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        if self._starter is None:
            self.begin(spec.nbytes)
        plan = self._opened()
        self.per_client = plan.per_client
        if plan.note:
            self._note(plan.note)
        self._device, self._keeps_state = spec.device, spec.keeps_state
        self._spec_ref = ray.put(spec)
        try:
            infos = self._await(
                [actor.build.remote(self._spec_ref, self._device) for actor in self._actors.values()],
                self._config.start_timeout_seconds,
                f"{plan.count} client actors ({plan.num_cpus:g} CPUs, {plan.num_gpus:g} GPUs each) to be ready",
                "ray.start_timeout_seconds",
            )
        except SYSTEM_ERRORS as error:
            raise ResourceError(f"a client actor was lost while it started: {first_line(error)}") from error
        if plan.num_gpus and spec.device == "auto" and any(info.device == "cpu" for info in infos):
            self._note("warning: actors hold GPU shares, but torch sees no GPU there; they compute on the CPU")
        return infos

    def _opened(self) -> ActorPlan:
        """Wait until Ray is connected and the actors are created."""
        while not self._opening.done():
            wait([self._opening], timeout=POLL_SECONDS)
            self._check_interrupt()
        retake_signals()
        return self._opening.result()

    def _successor(self) -> Any:
        """Create an actor that takes the place of a lost one."""
        return self._actor_class.remote((), self._spec_ref, self._device)

    def close(self) -> None:
        if self._starter is None:
            return
        wait([self._opening])  # half a start cannot be taken back; all of it can
        if ray.is_initialized():
            for actor in [*self._actors.values(), *([self._server] if self._server is not None else [])]:
                ray.kill(actor, no_restart=True)
            if self._connected:
                ray.shutdown()
        self._starter.shutdown()
        self._actors.clear()
        self._server = self._spec_ref = None
        self._folds.clear()
        self._unfolded = []
        self._starter, self._connected = None, False

    # -- server ------------------------------------------------------------------------------------------------------

    def start_server(
        self,
        config: ServerConfig,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
    ) -> None:
        self._fold_every = max(1, min(_FOLD_UPDATES, _FOLD_BYTES // (8 * len(vector_F))))
        self._folds.clear()
        self._unfolded = []
        arguments = (config, vector_F, layers, sample_rate, population_weight)
        self._from_server(self._server.start.remote(*arguments), "the server to start")

    def global_state(self) -> Handle:
        return self._server.global_state.remote()

    def _fold(self, round: int, update: Handle) -> None:
        self._unfolded.append(update)
        if len(self._unfolded) < self._fold_every:
            return
        self._folds.append(self._server.fold.remote(round, *self._unfolded))
        self._unfolded = []
        if len(self._folds) > 1:  # lest sums pile up before a server that is slower than the clients
            self._from_server(self._folds.popleft(), f"the server to fold sums of round {round + 1}")

    def apply(self, round: int, order: tuple[int, ...]) -> StepReport:
        unfolded, self._unfolded = self._unfolded, []
        step = self._server.apply.remote(round, order, *unfolded)
        del unfolded
        what = f"the server step of round {round + 1}"
        while self._folds:
            self._from_server(self._folds.popleft(), what)
        return self._from_server(step, what)

    def server_arrays(self) -> dict[str, np.ndarray]:
        return self._from_server(self._server.arrays.remote(), "the server's state")

    def load_server_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        self._from_server(self._server.load_arrays.remote(arrays), "the server to take over a checkpoint")

    def _from_server(self, ref: ray.ObjectRef, what: str) -> Any:
        try:
            # Not open to interrupts: a server step is short, and half a step could not be saved.
            return self._await(
                [ref], self._config.group_timeout_seconds, what, "ray.group_timeout_seconds", interruptible=False
            )[0]
        except SYSTEM_ERRORS as error:
            raise ResourceError(
                f"the aggregator actor was lost ({first_line(error)}); continue with --resume"
            ) from error

    # -- client work -------------------------------------------------------------------------------------------------

    def train(
        self,
        groups: Sequence[WorkGroup],
        state: Handle,
        client_states: Mapping[int, Handle],
        shards: Sequence[tuple[int, int]] = (),
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        planned = [self._with_trunks(group) for group in groups]
        calls = [
            Call(
                index,
                "train",
                (group, state, *_references(client_states, group.clients), *trunks.values()),
                num_returns=2 + len(group.clients) * self._keeps_state + len(group.keep_trunks),
                slot=group.clients[0] if self.per_client else None,
                what=f"round {group.round + 1}, group {group.group}",
            )
            for index, (group, trunks) in enumerate(planned)
        ]
        in_order = InOrder()
        # Evaluations come last: they are short, so they fill what time actors have left at the end of a round.
        for done in self._dispatcher.run([*calls, *self._evaluation_calls(state, shards, first_index=len(calls))]):
            if done.index >= len(calls):
                yield self._evaluated(done, shards, first_index=len(calls))
                continue
            group = planned[done.index][0]
            for update in in_order.next(done.index, done.refs[1]):
                self._fold(group.round, update)
            first_trunk = 2 + len(group.clients) * self._keeps_state
            self._keep_trunks(group, done.refs[first_trunk:])
            states = dict(zip(group.clients, done.refs[2:first_trunk], strict=True)) if self._keeps_state else {}
            yield TrainedGroup(group, done.value, states)

    def try_fusing(self, state: Handle, clients: Sequence[int]) -> FuseTrial:
        trial: FuseTrial
        (trial,) = self._in_order([Call(0, "try_fusing", (state, *clients), what="the trial of client.fuse")])
        return trial

    @property
    def shared_memory_bytes(self) -> int | None:
        total = ray.cluster_resources().get("object_store_memory")
        return None if total is None else int(total)

    def evaluate(self, state: Handle, shards: Sequence[tuple[int, int]]) -> list[Evaluation]:
        calls = self._evaluation_calls(state, shards)
        evaluated = [self._evaluated(done, shards) for done in self._dispatcher.run(calls)]
        return [each.evaluation for each in sorted(evaluated, key=lambda each: each.index)]

    def _evaluation_calls(self, state: Handle, shards: Sequence[tuple[int, int]], first_index: int = 0) -> list[Call]:
        keep, held = set(self.trunks.wanted(shards)), self.trunks.held(shards)
        return [
            Call(
                index,
                "evaluate",
                (state, *shard, shard in keep, *([held[shard]] if shard in held else [])),
                num_returns=2 if shard in keep else 1,
                what=f"evaluation of examples {shard[0]} to {shard[1]}",
            )
            for index, shard in enumerate(shards, first_index)
        ]

    def _evaluated(self, done: Done, shards: Sequence[tuple[int, int]], first_index: int = 0) -> EvaluatedShard:
        index = done.index - first_index
        if len(done.refs) > 1:
            self.trunks.add(shards[index], done.refs[1])
        return EvaluatedShard(index, done.value)

    def evaluate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Evaluation]:
        calls = [
            Call(
                index,
                "evaluate_clients",
                (state, self.fuse, clients, *_references(client_states, clients)),
                slot=clients[0] if self.per_client else None,
                what=f"evaluation of clients {clients[0]} to {clients[-1]}",
            )
            for index, clients in enumerate(groups)
        ]
        return [evaluation for group in self._in_order(calls) for evaluation in group]

    def score(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[ScoreReport]:
        return self._of_clients("score", state, groups, "layer scores")

    def spectrum(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[SpectrumReport]:
        return self._of_clients("spectrum", state, groups, "Hessian spectra")

    def put(self, value: Any) -> Handle:
        return ray.put(value)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        references = [handle for handle in handles if isinstance(handle, ray.ObjectRef)]
        fetched = iter(ray.get(references))
        return [next(fetched) if isinstance(handle, ray.ObjectRef) else handle for handle in handles]

    @property
    def replaced_workers(self) -> int:
        return self._dispatcher.replaced

    def peak_memory(self) -> dict[str, Any]:
        refs = [actor.peak_memory_bytes.remote() for actor in [*self._actors.values(), self._server]]
        try:
            what, key = "the actors' peak memory", "ray.start_timeout_seconds"
            *workers, server = self._await(refs, self._config.start_timeout_seconds, what, key, interruptible=False)
        except SYSTEM_ERRORS:  # a figure, and the work is done: not worth a failed run
            return super().peak_memory()
        return {**super().peak_memory(), "workers": workers, "server": server}

    # -- dispatch ----------------------------------------------------------------------------------------------------

    def _of_clients(self, method: str, state: Handle, groups: Sequence[tuple[int, ...]], what: str) -> list[Any]:
        calls = [
            Call(
                index,
                method,
                (state, *clients),
                slot=clients[0] if self.per_client else None,
                what=f"{what} of clients {clients[0]} to {clients[-1]}",
            )
            for index, clients in enumerate(groups)
        ]
        return [report for group in self._in_order(calls) for report in group]

    def _in_order(self, calls: Sequence[Call]) -> list[Any]:
        results = {done.index: done.value for done in self._dispatcher.run(calls)}
        return [results[index] for index in range(len(calls))]

    def _await(
        self,
        refs: Sequence[ray.ObjectRef],
        timeout_seconds: float,
        what: str,
        key: str,
        *,
        interruptible: bool = True,
    ) -> list[Any]:
        """Wait for all of ``refs`` with a deadline."""
        deadline = time.monotonic() + timeout_seconds
        pending = list(refs)
        while pending:
            ready, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
            if interruptible:
                self._check_interrupt()
            try:
                ray.get(ready)
            except ray_errors.RayTaskError as error:
                raise task_error(what, error) from error
            if pending and time.monotonic() > deadline:
                raise ResourceError(f"waited {timeout_seconds:g} s ({key}) for {what}; {len(pending)} are missing")
        return ray.get(list(refs))


def _references(client_states: Mapping[int, Handle], clients: Sequence[int]) -> list[ray.ObjectRef]:
    """Return those states of ``clients`` that are objects; the others hold nothing but counts, which workers need not know."""
    return [state for state in map(client_states.__getitem__, clients) if isinstance(state, ray.ObjectRef)]
