"""Work groups on Ray actors.

What moves: one specification object at the start, one broadcast object a round, and references. The driver owns every
object, client states included, so an actor that dies takes nothing with it but the group it was working on, and that
group is sent to its successor.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import ClientError, FedsimError, ResourceError
from fedsim.core.messages import Evaluation, ScoreReport, WorkGroup
from fedsim.executors.base import Executor, Handle, TrainedGroup
from fedsim.executors.config import RayConfig
from fedsim.executors.plan import ActorPlan, NodeResources, plan_actors
from fedsim.interrupt import kept_handlers

if TYPE_CHECKING:
    import numpy as np

    from clients.worker import WorkerInfo, WorkerSpec
    from server.config import ServerConfig
    from server.core import StepReport

_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_SYSTEM_ERRORS = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,
)
_EXCLUDES = [".git", ".venv", "runs", "docs", "tests", "benchmarks", "**/__pycache__", "*.egg-info"]


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

        self._connect(spec)
        self._plan = plan_actors(self._config, self._threads, self._population, _free_resources())
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

    def _connect(self, spec: WorkerSpec) -> None:
        address = self._config.address
        if ray.is_initialized():
            if address is None:
                raise ResourceError(
                    "this process is connected to Ray already; set ray.address=auto to use that cluster"
                )
            return
        if address is not None:
            _check_reachable(address)
        try:
            with kept_handlers():
                if address is None:
                    self._start_own(spec)
                else:
                    ray.init(
                        address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_runtime_env()
                    )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = "a Ray of its own" if address is None else f"the Ray cluster at ray.address={address}"
            raise ResourceError(f"cannot reach {where}: {reason}") from error
        self._connected = True

    def _start_own(self, spec: WorkerSpec) -> None:
        # Actors are processes of the raylet and take its environment over: they find the top-level packages by it.
        root = str(_project_root())
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.pathsep.join(paths).split(os.pathsep)))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        megabytes = self._config.object_store_mb or 256 + 2 * _spec_bytes(spec) // 2**20
        ray.init(
            address="local",
            num_cpus=self._config.num_cpus,
            num_gpus=self._config.num_gpus,
            object_store_memory=megabytes * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

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
        self, config: ServerConfig, vector_F: np.ndarray, layers: tuple[int, ...], sample_rate: float
    ) -> None:
        from server.aggregator import AggregatorActor

        if self._server is not None:
            ray.kill(self._server, no_restart=True)
        actor_class: Any = AggregatorActor
        self._server = actor_class.remote(config, vector_F, layers, sample_rate)

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
        calls = [
            _Call(
                index,
                "score",
                (state, *clients),
                slot=clients[0] if self.per_client else None,
                what=f"layer scores of clients {clients[0]} to {clients[-1]}",
            )
            for index, clients in enumerate(groups)
        ]
        return [report for group in self._in_order(calls) for report in group]

    def put(self, value: Any) -> Handle:
        return ray.put(value)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        return [ray.get(handle) if isinstance(handle, ray.ObjectRef) else handle for handle in handles]

    @property
    def replaced_workers(self) -> int:
        return self._replaced

    # -- dispatch ----------------------------------------------------------------------------------------------------

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


def _free_resources() -> list[NodeResources]:
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [NodeResources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in free.values()]


def _check_reachable(address: str) -> None:
    """Ask the cluster's port before Ray does, which would keep trying for minutes.

    Raises
    ------
    ResourceError
        If nothing answers there, or ``address`` is no address.
    """
    named = f"ray.address={address}"
    if address == "auto" and "RAY_ADDRESS" in os.environ:
        address = os.environ["RAY_ADDRESS"]
        named = f"RAY_ADDRESS={address} (ray.address=auto)"
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ResourceError(f"{named} is not an address such as 10.0.0.1:6379; give one, or auto, or null")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"no Ray cluster answers at {named}: {reason}; start one, or set ray.address=null"
        ) from None


def _spec_bytes(spec: WorkerSpec) -> int:
    return spec.weights.nbytes + spec.train.nbytes + spec.validation.nbytes


def _project_root() -> Path:
    return Path(__file__).resolve().parents[2]


def _runtime_env() -> dict[str, Any]:
    """Ship a source checkout to a cluster that we join; a submitted job has brought its files, an installation is there."""
    root = _project_root()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or not (root / "pyproject.toml").exists():
        return {}
    return {"working_dir": str(root), "excludes": _EXCLUDES}
