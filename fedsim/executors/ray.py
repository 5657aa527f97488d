"""Work groups on Ray actors.

What moves: one specification object at the start, one broadcast object a round, and references. The driver owns every
object, client states included, so an actor that dies takes nothing with it but the group it was working on, and that
group is sent again. Objects that are gone with a node raise ``StateLost``: the simulation goes back to what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ResourceError
from fedsim.core.messages import (
    ClientFailure,
    ClientReport,
    Evaluation,
    FuseTrial,
    ScoreReport,
    SpectrumReport,
    WorkGroup,
)
from fedsim.executors.base import EvaluatedShard, Executor, Handle, StateLost, TrainedGroup
from fedsim.executors.calls import references, train_call
from fedsim.executors.cluster import connect
from fedsim.executors.config import RayConfig
from fedsim.executors.dispatch import Call, Dispatcher, Done, Failed
from fedsim.executors.failures import SYSTEM_ERRORS, FailurePolicy, ray_error, reason
from fedsim.executors.placement import free_by_node, on_node, place
from fedsim.executors.plan import ActorPlan, capacity, plan_actors
from fedsim.executors.pool import ActorPool
from fedsim.executors.reduction import Aggregator
from fedsim.executors.waiting import POLL_SECONDS, OverdueError, wait_for
from fedsim.interrupt import retake_signals

if TYPE_CHECKING:
    import numpy as np

    from clients.worker import WorkerInfo, WorkerSpec
    from server.config import ServerConfig
    from server.core import StepReport

_START_KEY = "ray.start_timeout_seconds"


class RayExecutor(Executor):
    """Runs work groups on a pool of actors.

    Parameters
    ----------
    config
        The ``ray`` section.
    threads
        CPU threads of a worker.
    population
        Number of clients.
    on_failure
        ``client.on_failure``.
    note
        Called with sentences for the user: sharing of CPUs, replaced actors.
    """

    def __init__(
        self,
        config: RayConfig,
        threads: int,
        population: int,
        on_failure: str,
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
        self._created: list[Any] = []
        """The first actors, until they are ready."""
        self._actor_class: Any = None
        self._aggregator: Aggregator | None = None
        self._plan: ActorPlan | None = None
        self._spec_ref: ray.ObjectRef | None = None
        self._sizes_N: np.ndarray | None = None
        self._nodes_with_adders: set[str] | None = None
        self._device = "auto"
        self._keeps_state = True
        self._pool = ActorPool(config, self._create, note)
        self._dispatcher = Dispatcher(
            config, self._pool, FailurePolicy.of(on_failure), lambda: self._check_interrupt(), note
        )

    # -- start and end -----------------------------------------------------------------------------------------------

    def begin(self, spec_nbytes: int, modules: tuple[str, ...] = ()) -> None:
        # Imported here and not in the thread, so that no two threads import the same packages at once.
        from clients.actor import ClientActor
        from server.aggregator import AggregatorActor, BlockActor

        self._aggregator = Aggregator(self._config, AggregatorActor, BlockActor)
        # The thread lives until the end: the system ends Ray's processes together with the thread that started them.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="ray-starter")
        self._opening = self._starter.submit(self._open, spec_nbytes, modules, ClientActor)

    def _open(self, spec_nbytes: int, modules: tuple[str, ...], actor_class: Any) -> ActorPlan:
        """Connect to Ray and create all actors; they wait for their specification."""
        self._connected = connect(self._config, spec_nbytes)
        free = free_by_node()
        plan = plan_actors(self._config, self._threads, self._population, list(free.values()))
        self._actor_class = actor_class
        self._created = [
            actor_class.options(num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, **on_node(node)).remote(modules)
            for node in place(plan, free)
        ]
        self._server.create()
        return plan

    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        if self._starter is None:
            self.begin(spec.nbytes)
        plan = self._plan = self._opened()
        self.per_client = plan.per_client
        if plan.note:
            self._note(plan.note)
        self._device, self._keeps_state, self._sizes_N = spec.device, spec.keeps_state, spec.train_sizes
        self._spec_ref = ray.put(spec)
        infos: list[WorkerInfo]
        try:
            infos = wait_for(
                [actor.build.remote(self._spec_ref, self._device) for actor in self._created],
                self._config.start_timeout_seconds,
                f"{plan.count} client actors ({plan.num_cpus:g} CPUs, {plan.num_gpus:g} GPUs each) to be ready",
                _START_KEY,
                self._check_interrupt,
            )
        except (*SYSTEM_ERRORS, StateLost) as error:
            raise ResourceError(f"a client actor was lost while it started: {reason(error)}") from error
        except OverdueError as error:
            free = "; ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in free_by_node().values())
            raise ResourceError(f"{error}; free by node now: {free or 'nothing'}") from error
        for slot, (actor, info) in enumerate(zip(self._created, infos, strict=True)):
            self._pool.add(slot, actor, info.node_id)
        self._created = []
        self._add_up_by_node()
        if plan.num_gpus and spec.device == "auto" and any(info.device == "cpu" for info in infos):
            self._note("warning: actors hold GPU shares, but torch sees no GPU there; they compute on the CPU")
        return infos

    def _opened(self) -> ActorPlan:
        """Wait until Ray is connected and the actors are created."""
        limit = self._config.start_timeout_seconds
        deadline = time.monotonic() + limit
        while not self._opening.done():
            wait([self._opening], timeout=POLL_SECONDS)
            self._check_interrupt()
            if time.monotonic() > deadline:
                where = "a Ray of its own to start" if self._config.address is None else "the cluster to answer"
                raise ResourceError(f"waited {limit:g} s ({_START_KEY}) for {where}")
        retake_signals()
        return self._opening.result()

    def _create(self) -> Any:
        """Create an actor that builds its worker by itself: in place of a lost one, or on a node that has joined."""
        assert self._plan is not None
        reserved = {"num_cpus": self._plan.num_cpus, "num_gpus": self._plan.num_gpus}
        actor = self._actor_class.options(scheduling_strategy="SPREAD", **reserved)
        return actor.remote((), self._spec_ref, self._device)

    def close(self) -> None:
        if self._starter is None:
            return
        # Half a start cannot be taken back; all of it can.
        wait([self._opening], timeout=self._config.start_timeout_seconds)
        if self._opening.done() and ray.is_initialized():
            self._pool.close()
            for actor in [*self._created, *self._server.actors]:
                ray.kill(actor, no_restart=True)
            if self._connected:
                ray.shutdown()
        self._created = []
        self._starter.shutdown(wait=self._opening.done())
        self._starter = None

    @property
    def _server(self) -> Aggregator:
        if self._aggregator is None:
            raise RuntimeError("the executor has not been started")
        return self._aggregator

    # -- what comes and goes -----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        plan = self._plan
        self._add_up_by_node()
        if plan is None or self._config.address is None or plan.per_client or self._pool.starting:
            return
        wanted = self._population if self._config.actors == "pool" else plan.count
        missing = wanted - len(self._pool)
        if missing > 0:
            room = capacity(list(free_by_node().values()), plan.num_cpus, plan.num_gpus)
            if more := min(missing, room):
                self._note(f"the cluster has room for more: starting {more} actors")
                self._pool.grow(more)

    def recover(self) -> None:
        self._dispatcher.settle()
        self._server.revive()
        self._nodes_with_adders = None
        self._add_up_by_node()
        self.trunks.clear()

    def _add_up_by_node(self) -> None:
        """Let each node on which there are actors add the sums of its groups up."""
        nodes = set(self._pool.nodes.values())
        if nodes != self._nodes_with_adders:
            self._nodes_with_adders = nodes
            self._server.create_adders(nodes)

    # -- server ------------------------------------------------------------------------------------------------------

    def start_server(
        self,
        config: ServerConfig,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
    ) -> None:
        self._server.start(config, vector_F, layers, sample_rate, population_weight)

    def global_state(self) -> Handle:
        return self._server.global_state()

    def apply(self, round: int, order: tuple[int, ...]) -> StepReport:
        return self._server.apply(round, order)

    def server_arrays(self) -> dict[str, np.ndarray]:
        return self._server.arrays()

    def load_server_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        self._server.load_arrays(arrays)

    # -- client work -------------------------------------------------------------------------------------------------

    def train(
        self,
        groups: Sequence[WorkGroup],
        state: Handle,
        client_states: Mapping[int, Handle],
        shards: Sequence[tuple[int, int]] = (),
    ) -> Iterator[TrainedGroup | EvaluatedShard]:
        calls = []
        for index, group in enumerate(groups):
            slot = group.clients[0] if self.per_client else None
            keyed, trunks = self._with_trunks(group)
            calls.append(train_call(index, keyed, state, client_states, list(trunks.values()), self._keeps_state, slot))
        # Evaluations come last: they are short, so they fill what time actors have left at the end of a round.
        calls += self._evaluation_calls(state, shards, first_index=len(groups))
        sums = self._server.round(groups)
        gathered: dict[int, dict[int, Done | Failed]] = {}
        for outcome in self._dispatcher.run(calls, self._config.round_timeout_seconds):
            call = outcome.call
            if isinstance(outcome, Done) and call.index >= len(groups):
                yield self._evaluated(outcome, shards, first_index=len(groups))
                continue
            parts = gathered.setdefault(call.index, {})
            parts[call.part] = outcome
            if len(parts) == call.parts:
                whole = [parts[part] for part in sorted(gathered.pop(call.index))]
                done = [each for each in whole if isinstance(each, Done)]
                sums.add(call.index, [each.refs[1] for each in done], done[-1].node if done else "")
                yield self._trained(groups[call.index], whole)

    def _trained(self, group: WorkGroup, outcomes: Sequence[Done | Failed]) -> TrainedGroup:
        """Put together what came of a group, which was sent as a whole or client by client."""
        reports: list[ClientReport] = []
        states: dict[int, Handle] = {}
        for outcome in outcomes:
            call = outcome.call
            if isinstance(outcome, Failed):
                reports += [self._failed_report(group.round, client, outcome) for client in call.clients]
                continue
            reports += outcome.value
            first_trunk = 2 + len(call.clients) * self._keeps_state
            self._keep_trunks(call.arguments[0], outcome.refs[first_trunk:])
            if self._keeps_state:
                states.update(zip(call.clients, outcome.refs[2:first_trunk], strict=True))
        return TrainedGroup(group, tuple(reports), states)

    def _failed_report(self, round: int, client: int, failed: Failed) -> ClientReport:
        num_examples = 0 if self._sizes_N is None else int(self._sizes_N[client])
        return ClientReport(client, round, num_examples, failure=ClientFailure(failed.kind, failed.message))

    def try_fusing(self, state: Handle, clients: Sequence[int]) -> FuseTrial | ClientFailure:
        trial: FuseTrial | ClientFailure
        (trial,) = self._in_order([Call(0, "try_fusing", (state, *clients), what="the trial of client.fuse")])
        return trial

    @property
    def shared_memory_bytes(self) -> int | None:
        total = ray.cluster_resources().get("object_store_memory")
        return None if total is None else int(total)

    def evaluate(self, state: Handle, shards: Sequence[tuple[int, int]]) -> list[Evaluation]:
        calls = self._evaluation_calls(state, shards)
        evaluated = [self._evaluated(done, shards) for done in self._done(calls)]
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
        index = done.call.index - first_index
        if len(done.refs) > 1:
            self.trunks.add(shards[index], done.refs[1])
        return EvaluatedShard(index, done.value)

    def evaluate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Evaluation | ClientFailure]:
        def arguments(clients: tuple[int, ...]) -> tuple[Any, ...]:
            return state, self.fuse, clients, *references(client_states, clients)

        return self._of_clients("evaluate_clients", groups, arguments, "evaluation")

    def score(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[ScoreReport]:
        return self._of_clients("score", groups, lambda clients: (state, *clients), "layer scores")

    def spectrum(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[SpectrumReport]:
        return self._of_clients("spectrum", groups, lambda clients: (state, *clients), "Hessian spectra")

    def put(self, value: Any) -> Handle:
        try:
            return ray.put(value)
        except ray_errors.RayError as error:
            raise ray_error("an object of the run cannot be stored", error) from error

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        references = [handle for handle in handles if isinstance(handle, ray.ObjectRef)]
        try:
            limit, key = self._config.group_timeout_seconds, "ray.group_timeout_seconds"
            fetched = iter(wait_for(references, limit, "states of clients and server", key))
        except SYSTEM_ERRORS as error:
            raise StateLost(f"states were lost with their node ({reason(error)})") from error
        return [next(fetched) if isinstance(handle, ray.ObjectRef) else handle for handle in handles]

    @property
    def replaced_workers(self) -> int:
        return self._dispatcher.replaced

    @property
    def resent_clients(self) -> int:
        return self._dispatcher.resent_clients

    def peak_memory(self) -> dict[str, Any]:
        refs = [actor.peak_memory_bytes.remote() for actor in [*self._pool.ready.values(), self._server.actor]]
        try:
            *workers, server = wait_for(refs, self._config.start_timeout_seconds, "the actors' peak memory", _START_KEY)
        except (*SYSTEM_ERRORS, ResourceError, StateLost):  # a figure, and the work is done: not worth a failed run
            return super().peak_memory()
        return {**super().peak_memory(), "workers": workers, "server": server}

    def _of_clients(
        self,
        method: str,
        groups: Sequence[tuple[int, ...]],
        arguments: Callable[[tuple[int, ...]], tuple[Any, ...]],
        what: str,
    ) -> list[Any]:
        calls = [
            Call(
                index,
                method,
                arguments(clients),
                slot=clients[0] if self.per_client else None,
                what=f"{what} of clients {clients[0]} to {clients[-1]}",
            )
            for index, clients in enumerate(groups)
        ]
        return [report for group in self._in_order(calls) for report in group]

    def _in_order(self, calls: Sequence[Call]) -> list[Any]:
        results = {done.call.index: done.value for done in self._done(calls)}
        return [results[index] for index in range(len(calls))]

    def _done(self, calls: Sequence[Call]) -> Iterator[Done]:
        """Run calls that train no clients: each is done, or the run stops."""
        return (outcome for outcome in self._dispatcher.run(calls) if isinstance(outcome, Done))
