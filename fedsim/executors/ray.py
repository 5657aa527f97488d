"""Work groups on Ray actors.

What moves: one specification object at the start, one broadcast object a round, and references. The driver owns every
object, client states included, so an actor that dies takes nothing with it but the group it was working on, and that
group is sent to its successor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ClientError, FedsimError, ResourceError
from fedsim.core.messages import Evaluation, ScoreReport, SpectrumReport, WorkGroup
from fedsim.executors.base import Executor, Handle, TrainedGroup
from fedsim.executors.cluster import connect, free_resources
from fedsim.executors.config import RayConfig
from fedsim.executors.plan import ActorPlan, plan_actors

if TYPE_CHECKING:
    import numpy as np

    from clients.worker import WorkerInfo, WorkerSpec
    from server.config import ServerConfig
    from server.core import StepReport

_POLL_SECONDS = 0.5
_SYSTEM_ERRORS = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,
)


@dataclass(frozen=True)
class _Call:
    """One actor call: the unit that is sent again when its actor is lost."""

    index: int
    method: str
    arguments: tuple[Any, ...]
    num_returns: int = 1
    slot: int | None = None
    """The actor that has to run it, or None for any."""
    what: str = ""
    """For messages, rounds counted from 1: ``round 3, group 1``."""


@dataclass(frozen=True)
class _Flight:
    slot: int
    call: _Call
    refs: list[ray.ObjectRef]
    started: float


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
        self._plan: ActorPlan | None = None
        self._actors: dict[int, Any] = {}
        self._server: Any = None
        self._spec_ref: ray.ObjectRef | None = None
        self._device = "auto"
        self._replaced = 0

    # -- start and end -----------------------------------------------------------------------------------------------

    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        from clients.actor import ClientActor

        self._connected = connect(self._config, spec.weights.nbytes + spec.train.nbytes + spec.validation.nbytes)
        self._plan = plan_actors(self._config, self._threads, self._population, free_resources())
        self.per_client = self._plan.per_client
        if self._plan.note:
            self._note(self._plan.note)
        self._device = spec.model.device
        self._spec_ref = ray.put(spec)
        actor_class: Any = ClientActor
        self._actor_class = actor_class.options(
            num_cpus=self._plan.num_cpus, num_gpus=self._plan.num_gpus, scheduling_strategy="SPREAD"
        )
        self._actors = {slot: self._new_actor() for slot in range(self._plan.count)}
        infos = self._await(
            [actor.info.remote() for actor in self._actors.values()],
            self._config.start_timeout_seconds,
            f"{self._plan.count} client actors ({self._plan.num_cpus:g} CPUs, {self._plan.num_gpus:g} GPUs each) to be ready",
            "ray.start_timeout_seconds",
        )
        if self._plan.num_gpus and spec.model.device == "auto" and any(info.device == "cpu" for info in infos):
            self._note("warning: actors hold GPU shares, but torch sees no GPU there; they compute on the CPU")
        return infos

    def _new_actor(self) -> Any:
        return self._actor_class.remote(self._spec_ref, self._device)

    def close(self) -> None:
        if ray.is_initialized():
            for actor in [*self._actors.values(), *([self._server] if self._server is not None else [])]:
                ray.kill(actor, no_restart=True)
            if self._connected:
                ray.shutdown()
        self._actors, self._server, self._spec_ref, self._connected = {}, None, None, False

    # -- server ------------------------------------------------------------------------------------------------------

    def start_server(
        self,
        config: ServerConfig,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float,
    ) -> None:
        from server.aggregator import AggregatorActor

        if self._server is not None:
            ray.kill(self._server, no_restart=True)
        actor_class: Any = AggregatorActor
        self._server = actor_class.remote(config, vector_F, layers, sample_rate, population_weight)

    def global_state(self) -> Handle:
        return self._server.global_state.remote()

    def apply(self, round: int, order: tuple[int, ...], updates: Sequence[Handle]) -> StepReport:
        return self._from_server(
            self._server.apply.remote(round, order, *updates), f"the server step of round {round + 1}"
        )

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
        except _SYSTEM_ERRORS as error:
            raise ResourceError(
                f"the aggregator actor was lost ({_first_line(error)}); continue with --resume"
            ) from error

    # -- client work -------------------------------------------------------------------------------------------------

    def train(
        self, groups: Sequence[WorkGroup], state: Handle, client_states: Mapping[int, Handle]
    ) -> Iterator[TrainedGroup]:
        calls = [
            _Call(
                index,
                "train",
                (group, state, *(client_states[client] for client in group.clients)),
                num_returns=2 + len(group.clients),
                slot=group.clients[0] if self.per_client else None,
                what=f"round {group.round + 1}, group {group.group}",
            )
            for index, group in enumerate(groups)
        ]
        for index, reports, refs in self._run(calls):
            group = groups[index]
            yield TrainedGroup(group, reports, refs[1], dict(zip(group.clients, refs[2:], strict=True)))

    def evaluate(self, state: Handle, shards: Sequence[tuple[int, int]]) -> list[Evaluation]:
        calls = [
            _Call(index, "evaluate", (state, start, stop), what=f"evaluation of examples {start} to {stop}")
            for index, (start, stop) in enumerate(shards)
        ]
        return self._in_order(calls)

    def evaluate_clients(
        self, state: Handle, groups: Sequence[tuple[int, ...]], client_states: Mapping[int, Handle]
    ) -> list[Evaluation]:
        calls = [
            _Call(
                index,
                "evaluate_clients",
                (state, *(client_states[client] for client in clients)),
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
        return [ray.get(handle) if isinstance(handle, ray.ObjectRef) else handle for handle in handles]

    @property
    def replaced_workers(self) -> int:
        return self._replaced

    # -- dispatch ----------------------------------------------------------------------------------------------------

    def _of_clients(self, method: str, state: Handle, groups: Sequence[tuple[int, ...]], what: str) -> list[Any]:
        calls = [
            _Call(
                index,
                method,
                (state, *clients),
                slot=clients[0] if self.per_client else None,
                what=f"{what} of clients {clients[0]} to {clients[-1]}",
            )
            for index, clients in enumerate(groups)
        ]
        return [report for group in self._in_order(calls) for report in group]

    def _in_order(self, calls: Sequence[_Call]) -> list[Any]:
        results = {index: value for index, value, _ in self._run(calls)}
        return [results[index] for index in range(len(calls))]

    def _run(self, calls: Sequence[_Call]) -> Iterator[tuple[int, Any, list[ray.ObjectRef]]]:
        """Run calls on idle actors; yield ``(index, value of the first return, all references)`` as they are done."""
        waiting = deque(calls)
        flights: dict[ray.ObjectRef, _Flight] = {}
        replaced_before = self._replaced
        while waiting or flights:
            self._dispatch(waiting, flights)
            ready, _ = ray.wait(list(flights), num_returns=1, timeout=_POLL_SECONDS)
            self._check_interrupt()
            for ref in ready:
                flight = flights.pop(ref)
                try:
                    value = ray.get(ref)
                except _SYSTEM_ERRORS as error:
                    self._replace(flight, error, self._replaced - replaced_before)
                    waiting.appendleft(flight.call)
                except ray_errors.RayTaskError as error:
                    raise _task_error(flight.call.what, error) from error
                else:
                    yield flight.call.index, value, flight.refs
            self._check_deadlines(flights)

    def _dispatch(self, waiting: deque[_Call], flights: dict[ray.ObjectRef, _Flight]) -> None:
        idle = set(self._actors) - {flight.slot for flight in flights.values()}
        for _ in range(len(waiting)):
            if not idle:
                return
            call = waiting.popleft()
            slot = call.slot if call.slot is not None else min(idle)
            if slot not in idle:
                waiting.append(call)
                continue
            idle.remove(slot)
            method = getattr(self._actors[slot], call.method)
            refs = method.options(num_returns=call.num_returns).remote(*call.arguments)
            refs = refs if isinstance(refs, list) else [refs]
            flights[refs[0]] = _Flight(slot, call, refs, time.monotonic())

    def _replace(self, flight: _Flight, error: Exception, replaced_now: int) -> None:
        if replaced_now >= self._config.max_replacements:
            raise ResourceError(
                f"{flight.call.what}: an actor was lost ({_first_line(error)}) after {replaced_now} replacements in one "
                "go; see ray.max_replacements, and memory if the system killed them"
            ) from error
        self._replaced += 1
        self._note(f"warning: actor {flight.slot} was lost in {flight.call.what} ({_first_line(error)}); sent again")
        self._actors[flight.slot] = self._new_actor()

    def _check_deadlines(self, flights: Mapping[ray.ObjectRef, _Flight]) -> None:
        limit = self._config.group_timeout_seconds
        for flight in flights.values():
            if time.monotonic() - flight.started > limit:
                raise ResourceError(f"{flight.call.what} took longer than ray.group_timeout_seconds={limit:g}")

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
            ready, pending = ray.wait(pending, num_returns=len(pending), timeout=_POLL_SECONDS)
            if interruptible:
                self._check_interrupt()
            try:
                ray.get(ready)
            except ray_errors.RayTaskError as error:
                raise _task_error(what, error) from error
            if pending and time.monotonic() > deadline:
                raise ResourceError(f"waited {timeout_seconds:g} s ({key}) for {what}; {len(pending)} are missing")
        return ray.get(list(refs))


def _task_error(what: str, error: ray_errors.RayTaskError) -> FedsimError:
    """Return the error of ours that a task raised, or a ClientError with the original traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, FedsimError) else ClientError(f"{what} failed:\n{error}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
