"""The Ray executor: work groups on Ray actors.

What moves: one specification object at the start, one broadcast object per round, and references. The driver owns every
object, client states included, so a dying actor loses only the group it was working on, and that
group is retried. Objects lost with a node raise ``StateLost``: the simulation falls back to what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ResourceError
from fedsim.core.generated import Generated
from fedsim.core.messages import (
    ClientFailure,
    ClientReport,
    Evaluation,
    FuseTrial,
    ScoreReport,
    SpectrumReport,
    WorkGroup,
)
from fedsim.core.plugins import loaded
from fedsim.core.returns import TrainReturns
from fedsim.executors.about import About
from fedsim.executors.base import NONE_EARLIER, EvaluatedShard, Executor, Handle, Ranges, StateLost, TrainedGroup
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.appearance import Appearance
from fedsim.executors.ray.calls import client_call, evaluation_call, references, train_call
from fedsim.executors.ray.deadlines import START_KEY, wait_for
from fedsim.executors.ray.dispatch import Call, Dispatcher, Done, Failed
from fedsim.executors.ray.failures import SYSTEM_ERRORS, FailurePolicy, ray_error, reason
from fedsim.executors.ray.outcomes import LeftOut, by_client, whole
from fedsim.executors.ray.reduction import Aggregator, blocks_of
from fedsim.executors.ray.workers import Workers

if TYPE_CHECKING:
    from clients.spec import WorkerInfo, WorkerSpec
    from fedsim.records.round_record import RoundRecord


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
        Called with messages for the user: shared CPUs, replaced actors.
    about
        The run, as others on its cluster see it.
    run
        Name of the run, for other users of a cluster.
    actor_bytes
        Main memory that an actor is expected to need; None if that is not known.
    """

    def __init__(
        self,
        config: RayConfig,
        threads: int,
        population: int,
        on_failure: str,
        check_interrupt: Callable[[], None],
        note: Callable[[str], None],
        about: About,
        run: str = "run",
        actor_bytes: int | None = None,
    ) -> None:
        super().__init__(check_interrupt)
        self._config = config
        # Looked up each time, since interrupts are sometimes held back.
        self._shown = Appearance(config, about)
        seen = self._shown, run, actor_bytes
        self._workers = Workers(config, threads, population, lambda: self._check_interrupt(), note, *seen)
        self._pool = self._workers.pool
        self._dispatcher = Dispatcher(
            config, self._pool, FailurePolicy.of(on_failure), lambda: self._check_interrupt(), note
        )
        self._aggregator: Aggregator | None = None
        self._nodes_with_adders: set[str] | None = None
        self._left_out = LeftOut()
        self._sizes_N: np.ndarray | None = None
        self._keeps_state = True

    # -- start and end -----------------------------------------------------------------------------------------------

    def begin(self, spec_nbytes: int, modules: tuple[str, ...] = (), config_hash: str = "") -> None:
        from server.aggregator import AggregatorActor, BlockActor

        self._shown.identify(config_hash)
        self._aggregator = Aggregator(self._config, AggregatorActor, BlockActor, self._shown)
        self._workers.begin(spec_nbytes, modules, self._aggregator.create)

    def specify(
        self, make: Callable[..., tuple[WorkerSpec, Any]], *arguments: Any, **here: Any
    ) -> tuple[WorkerSpec, Any]:
        # Actors of a joined cluster may be on other machines, and what is plugged in is known to this process.
        if self._config.address is not None or loaded():
            return super().specify(make, *arguments, **here)
        return self._workers.specify(make, *arguments)

    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        if not self._workers.begun:
            self.begin(spec.nbytes)
        infos = self._workers.start(spec)
        self.per_client = self._workers.per_client
        self._keeps_state, self._sizes_N = spec.keeps_state, spec.train_sizes
        self._add_up_by_node()
        return infos

    def close(self) -> None:
        self._workers.close(lambda: self.server.actors)

    @property
    def server(self) -> Aggregator:
        if self._aggregator is None:
            raise RuntimeError("the executor has not been started")
        return self._aggregator

    # -- nodes that come and go --------------------------------------------------------------------------------------

    def refresh(self) -> None:
        self._add_up_by_node()
        self._workers.refresh()

    def recover(self) -> None:
        self._dispatcher.settle()
        self.server.revive()
        self._nodes_with_adders = None
        self._add_up_by_node()
        self.caches.clear()

    def _add_up_by_node(self) -> None:
        """Have each node with actors add up the sums of its groups."""
        nodes = set(self._pool.nodes.values())
        if nodes != self._nodes_with_adders:
            self._nodes_with_adders = nodes
            self.server.create_adders(nodes)

    # -- client work -------------------------------------------------------------------------------------------------

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
        calls = []
        for index, (group, block) in enumerate(zip(groups, blocks_of(groups), strict=True)):
            slot = group.clients[0] if self.per_client else None
            keyed, caches = self._with_cached(group)
            rest = earlier.get(group.round, state), client_states, list(caches.values()), self._keeps_state, slot
            calls.append(train_call(index, keyed, block, *rest))
        # Evaluations come last: they are short, so they fill the time that actors have left at the end of a round.
        evaluations = self._evaluation_calls(state, shards, len(groups))
        calls = evaluations + calls if evaluate_first else calls + evaluations
        sums = self.server.round(groups)
        for index, outcomes in whole(self._outcomes(calls)):
            done = [each for each in outcomes if isinstance(each, Done)]
            if index >= len(groups):
                yield self._evaluated(done[0], shards, first_index=len(groups))
                continue
            sums.add(index, [self._returned(each).update for each in done], done[-1].node if done else "")
            yield self._trained(groups[index], outcomes)

    def _outcomes(self, calls: Sequence[Call]) -> Iterator[Done | Failed]:
        to_make, known = self._left_out.sort_out(calls)
        yield from known
        for outcome in self._dispatcher.run(to_make, self._config.round_timeout_seconds):
            if isinstance(outcome, Failed):
                self._left_out.add(outcome)
            yield outcome

    def _trained(self, group: WorkGroup, outcomes: Sequence[Done | Failed]) -> TrainedGroup:
        reports: list[ClientReport] = []
        states: dict[int, Handle] = {}
        for outcome in outcomes:
            call = outcome.call
            if isinstance(outcome, Failed):
                reports += [self._failed_report(group.round, client, outcome) for client in call.clients]
                continue
            returned = self._returned(outcome)
            reports += outcome.value
            self._keep_cached(call.arguments[0], returned.caches)
            if self._keeps_state:
                states.update(zip(call.clients, returned.states, strict=True))
        return TrainedGroup(group, tuple(reports), states)

    def _returned(self, done: Done) -> TrainReturns:
        """Return references to all that a call which trained has returned."""
        return TrainReturns.unpack(done.refs, done.call.arguments[0], self._keeps_state)

    def _failed_report(self, round: int, client: int, failed: Failed) -> ClientReport:
        failure = ClientFailure(failed.kind, failed.message)
        return ClientReport(client, round, self._num_examples(client), failure=failure)

    def _num_examples(self, client: int) -> int:
        return 0 if self._sizes_N is None else int(self._sizes_N[client])

    def try_fusing(self, state: Handle, clients: Sequence[int]) -> FuseTrial | ClientFailure:
        call = Call(0, "try_fusing", (state, *clients), what="the trial of client.fuse", clients=tuple(clients))
        (outcome,) = self._dispatcher.run([call])
        if isinstance(outcome, Failed):
            return ClientFailure(outcome.kind, outcome.message)
        trial: FuseTrial | ClientFailure = outcome.value
        return trial

    @property
    def shared_memory_bytes(self) -> int | None:
        total = ray.cluster_resources().get("object_store_memory")
        return None if total is None else int(total)

    def evaluate(self, state: Handle, shards: Ranges, *, keep_predictions: bool = False) -> list[Evaluation]:
        outcomes = self._dispatcher.run(self._evaluation_calls(state, shards, 0, keep_predictions))
        evaluated = [self._evaluated(outcome, shards) for outcome in outcomes if isinstance(outcome, Done)]
        return [each.evaluation for each in sorted(evaluated, key=lambda each: each.index)]

    def _evaluation_calls(self, state: Handle, shards: Ranges, first_index: int, keep: bool = False) -> list[Call]:
        wanted, held = set(self.caches.wanted(shards)), self.caches.held(shards)
        return [
            evaluation_call(index, state, shard, shard in wanted, held.get(shard), keep)
            for index, shard in enumerate(shards, first_index)
        ]

    def _evaluated(self, done: Done, shards: Ranges, first_index: int = 0) -> EvaluatedShard:
        index = done.call.index - first_index
        if len(done.refs) > 1:
            self.caches.add(shards[index], done.refs[1])
        return EvaluatedShard(index, done.value)

    def evaluate_clients(
        self,
        state: Handle,
        groups: Sequence[tuple[int, ...]],
        client_states: Mapping[int, Handle],
        personal: bool = True,
    ) -> list[Evaluation | ClientFailure]:
        def arguments(clients: tuple[int, ...]) -> tuple[Any, ...]:
            return state, self.fuse, personal, clients, *references(client_states, clients)

        return self._of_clients("evaluate_clients", groups, arguments, "evaluation", lambda _, failure: failure)

    def generate(self, state: Handle, ranges: Ranges) -> list[Generated]:
        calls = [
            Call(index, "generate", (state, start, stop), what=f"responses to examples {start} to {stop}")
            for index, (start, stop) in enumerate(ranges)
        ]
        done = [outcome for outcome in self._dispatcher.run(calls) if isinstance(outcome, Done)]
        return [outcome.value for outcome in sorted(done, key=lambda outcome: outcome.call.index)]

    def generate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Generated | ClientFailure]:
        def arguments(clients: tuple[int, ...]) -> tuple[Any, ...]:
            return state, self.fuse, clients, *references(client_states, clients)

        return self._of_clients("generate_clients", groups, arguments, "responses", lambda _, failure: failure)

    def score(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[ScoreReport]:
        def failed(client: int, failure: ClientFailure) -> ScoreReport:
            return ScoreReport(client, self._num_examples(client), np.empty(0), failure)

        return self._of_clients("score", groups, lambda clients: (state, *clients), "layer scores", failed)

    def spectrum(self, state: Handle, groups: Sequence[tuple[int, ...]]) -> list[SpectrumReport]:
        def failed(client: int, failure: ClientFailure) -> SpectrumReport:
            return SpectrumReport(client, self._num_examples(client), failure=failure)

        return self._of_clients("spectrum", groups, lambda clients: (state, *clients), "Hessian spectra", failed)

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
        return self._pool.replaced

    @property
    def resent_clients(self) -> int:
        return self._dispatcher.resent_clients

    def recorded(self, record: RoundRecord) -> None:
        if (metrics := self._shown.metrics) is not None:
            metrics.recorded(record)

    @property
    def found(self) -> dict[str, Any] | None:
        return self._shown.found

    def peak_memory(self) -> dict[str, Any]:
        refs = [actor.peak_memory_bytes.remote() for actor in [*self._pool.ready.values(), self.server.actor]]
        try:
            *workers, server = wait_for(refs, self._config.start_timeout_seconds, "the actors' peak memory", START_KEY)
        except (*SYSTEM_ERRORS, ResourceError, StateLost):  # only a statistic, and the work is done
            return super().peak_memory()
        return {**super().peak_memory(), "workers": workers, "server": server}

    def _of_clients(
        self,
        method: str,
        groups: Sequence[tuple[int, ...]],
        arguments: Callable[[tuple[int, ...]], tuple[Any, ...]],
        what: str,
        failed: Callable[[int, ClientFailure], Any],
    ) -> list[Any]:
        """Return one result per client, in order; ``failed`` makes the result of a client whose call failed for good."""
        calls = [client_call(index, method, clients, arguments, what) for index, clients in enumerate(groups)]
        if self.per_client:
            calls = [replace(call, slot=call.clients[0]) for call in calls]
        results = by_client(self._dispatcher.run(calls), failed)
        return [results[client] for clients in groups for client in clients]
