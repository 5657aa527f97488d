"""Life cycle of a run's client actors: connect, plan, create, wait until ready, and add more as the cluster grows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import ray

from fedsim.core.errors import ResourceError
from fedsim.executors.base import StateLost
from fedsim.executors.cluster.placement import free_by_node, on_node, place
from fedsim.executors.cluster.sizing import ActorPlan, capacity, plan_actors
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.appearance import Appearance
from fedsim.executors.ray.deadlines import POLL_SECONDS, START_KEY, OverdueError, wait_for
from fedsim.executors.ray.failures import SYSTEM_ERRORS, reason
from fedsim.executors.ray.pool import ActorPool
from fedsim.executors.ray.shipping import shipped
from fedsim.simulation.interrupt import retake_signals

if TYPE_CHECKING:
    from clients.spec import WorkerInfo, WorkerSpec


class Workers:
    """The client actors on a joined or local Ray cluster.

    Parameters
    ----------
    threads
        CPU threads per worker.
    population
        Number of clients.
    check_interrupt
        Raises when the user has interrupted the run.
    note
        Called with messages for the user.
    shown
        How the run appears on the cluster.
    """

    def __init__(
        self,
        config: RayConfig,
        threads: int,
        population: int,
        check_interrupt: Callable[[], None],
        note: Callable[[str], None],
        shown: Appearance,
    ) -> None:
        self._config, self._shown = config, shown
        self._threads = threads
        self._population = population
        self._check_interrupt = check_interrupt
        self._note = note
        self._connected = False
        self._starter: ThreadPoolExecutor | None = None
        self._opening: Future[ActorPlan]
        self._created: list[Any] = []
        """The first actors, until they are ready."""
        self._actor_class: Any = None
        self._plan: ActorPlan | None = None
        self._spec_ref: ray.ObjectRef | None = None
        self._made: tuple[WorkerSpec | None, ray.ObjectRef | None] = None, None
        """A specification that an actor has made, and where it is stored."""
        self._device = "auto"
        self.pool = ActorPool(config, self._create, note)

    @property
    def per_client(self) -> bool:
        """Whether every client has its own actor."""
        return self._plan is not None and self._plan.per_client

    def begin(self, spec_nbytes: int, modules: tuple[str, ...], create_server: Callable[[], None]) -> None:
        """Begin starting in the background; see :meth:`fedsim.executors.base.Executor.begin`."""
        # Imported here, not in the thread, so that no two threads import the same packages at once.
        from clients.actor import ClientActor

        self._actor_class = ClientActor
        # The thread lives until the end: the system ends Ray's processes together with the thread that started them.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="ray-starter")
        self._opening = self._starter.submit(self._open, spec_nbytes, modules, create_server)

    @property
    def begun(self) -> bool:
        """Whether it was started and not yet stopped."""
        return self._starter is not None

    def _open(self, spec_nbytes: int, modules: tuple[str, ...], create_server: Callable[[], None]) -> ActorPlan:
        """Connect to Ray and create all actors; they wait for their specification."""
        self._connected = self._shown.join(spec_nbytes)
        free = free_by_node()
        plan = plan_actors(self._config, self._threads, self._population, list(free.values()))
        # The server comes first: if a node runs out of memory, Ray kills the youngest actors.
        create_server()
        self._created = [self._new(plan, slot, modules, **on_node(node)) for slot, node in enumerate(place(plan, free))]
        return plan

    def _new(self, plan: ActorPlan, slot: int, *arguments: Any, **options: Any) -> Any:
        named, shown = self._shown.client(slot, plan.num_cpus, plan.num_gpus)
        reserved = {"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus}
        return self._actor_class.options(**options, **reserved, **named).remote(*arguments, **shown)

    def specify(self, make: Callable[..., tuple[WorkerSpec, Any]], *arguments: Any) -> tuple[WorkerSpec, Any]:
        """Return the specification that an actor makes, which stays in the object store for all, and what is beside it."""
        self._opened()
        made, beside = self._created[0].specify.options(num_returns=2).remote(make, *arguments)
        what = "the backbone to be loaded"
        try:
            spec, said = wait_for([made, beside], math.inf, what, START_KEY, self._check_interrupt)
        except (*SYSTEM_ERRORS, StateLost) as error:
            raise ResourceError(f"a client actor was lost while it loaded the backbone: {reason(error)}") from error
        self._made = spec, made
        return spec, said

    def start(self, spec: WorkerSpec) -> list[WorkerInfo]:
        """Send the specification to all actors and wait until they are ready; return where each one runs."""
        plan = self._plan = self._opened()
        if plan.note:
            self._note(plan.note)
        self._device = spec.device
        made, ref = self._made
        self._spec_ref = ref if made is spec else ray.put(shipped(spec))
        self._made = None, None
        infos: list[WorkerInfo]
        try:
            infos = wait_for(
                [actor.build.remote(self._spec_ref, self._device) for actor in self._created],
                self._config.start_timeout_seconds,
                f"{plan.count} client actors ({plan.num_cpus:g} CPUs, {plan.num_gpus:g} GPUs each) to be ready",
                START_KEY,
                self._check_interrupt,
            )
        except (*SYSTEM_ERRORS, StateLost) as error:
            raise ResourceError(f"a client actor was lost while it started: {reason(error)}") from error
        except OverdueError as error:
            free = "; ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in free_by_node().values())
            raise ResourceError(f"{error}; free by node now: {free or 'nothing'}") from error
        for slot, (actor, info) in enumerate(zip(self._created, infos, strict=True)):
            self.pool.add(slot, actor, info.node_id)
        self._created = []
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
                where = "a local Ray cluster to start" if self._config.address is None else "the cluster to answer"
                raise ResourceError(f"waited {limit:g} s ({START_KEY}) for {where}")
        retake_signals()
        return self._opening.result()

    def _create(self, slot: int) -> Any:
        """Create an actor that builds its worker itself: to replace a lost one, or on a new node."""
        assert self._plan is not None
        return self._new(self._plan, slot, (), self._spec_ref, self._device, scheduling_strategy="SPREAD")

    def refresh(self) -> None:
        """Start more actors if fewer are running than wanted and the cluster has room."""
        plan = self._plan
        if plan is None or self._config.address is None or plan.per_client or self.pool.starting:
            return
        wanted = self._population if self._config.actors == "pool" else plan.count
        missing = wanted - len(self.pool)
        if missing > 0:
            room = capacity(list(free_by_node().values()), plan.num_cpus, plan.num_gpus)
            if more := min(missing, room):
                self._note(f"the cluster has room for more: starting {more} actors")
                self.pool.grow(more)

    def close(self, others: Callable[[], Iterable[Any]]) -> None:
        """Kill all actors and the run's ``others``, and disconnect from Ray."""
        if self._starter is None:
            return
        # A start that is half done cannot be undone; a complete one can.
        wait([self._opening], timeout=self._config.start_timeout_seconds)
        self._shown.close()
        if self._opening.done() and ray.is_initialized():
            self.pool.close()
            for actor in [*self._created, *others()]:
                ray.kill(actor, no_restart=True)
            if self._connected:
                ray.shutdown()
        self._created = []
        self._starter.shutdown(wait=self._opening.done())
        self._starter = None
