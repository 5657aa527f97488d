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
from fedsim.executors.cluster.callers_group import group_of_caller
from fedsim.executors.cluster.rooms import Room, room_for
from fedsim.executors.cluster.sizing import ActorPlan
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.appearance import Appearance
from fedsim.executors.ray.deadlines import POLL_SECONDS, START_KEY, OverdueError, wait_for
from fedsim.executors.ray.failures import SYSTEM_ERRORS, reason
from fedsim.executors.ray.pool import ActorPool
from fedsim.executors.ray.reminder import Reminder
from fedsim.executors.ray.shipping import shipped
from fedsim.simulation.interrupt import retake_signals

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

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
        check_interrupt: Callable[[], None],
        note: Callable[[str], None],
        shown: Appearance,
        run: str = "run",
        actor_bytes: int | None = None,
    ) -> None:
        self._config, self._shown = config, shown
        self._run, self._actor_bytes = run, actor_bytes
        self._room: Room | None = None
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
        group = group_of_caller(self._config)
        # The thread lives until the end: the system ends Ray's processes together with the thread that started them.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="ray-starter")
        self._opening = self._starter.submit(self._open, group, spec_nbytes, modules, create_server)

    @property
    def begun(self) -> bool:
        """Whether it was started and not yet stopped."""
        return self._starter is not None

    def _open(
        self,
        group: PlacementGroup | None,
        spec_nbytes: int,
        modules: tuple[str, ...],
        create_server: Callable[[], None],
    ) -> ActorPlan:
        """Connect to Ray and create all actors; they wait for their specification."""
        self._connected = self._shown.join(spec_nbytes)
        room = self._room = room_for(self._config, self._run, group, self._actor_bytes)
        plan = room.reserve(self._threads, self._population)
        # The server comes first: if a node runs out of memory, Ray kills the youngest actors.
        create_server()
        self._created = [self._new(slot, modules) for slot in range(plan.count)]
        return plan

    def _new(self, slot: int, *arguments: Any) -> Any:
        room = self._running_room
        assert room.plan is not None
        named, shown = self._shown.client(slot, room.plan.num_cpus, room.plan.num_gpus)
        return self._actor_class.options(**room.options(slot), **named).remote(*arguments, **shown)

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
        for note in self._running_room.notes:
            self._note(note)
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
            raise ResourceError(f"{error}; {self._running_room.free}") from error
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
        told = Reminder(self._note)
        while not self._opening.done():
            wait([self._opening], timeout=POLL_SECONDS)
            self._check_interrupt()
            if self._room is not None and self._room.waits_for:
                told.tell(self._room.waits_for)
                deadline = time.monotonic() + limit  # others may take as long as they take
            elif time.monotonic() > deadline:
                where = "a local Ray cluster to start" if self._config.address is None else "the cluster to answer"
                raise ResourceError(f"waited {limit:g} s ({START_KEY}) for {where}")
        retake_signals()
        return self._opening.result()

    @property
    def _running_room(self) -> Room:
        assert self._room is not None
        return self._room

    def _create(self, slot: int) -> Any:
        """Create an actor that builds its worker itself: to replace a lost one, or on a new node."""
        return self._new(slot, (), self._spec_ref, self._device)

    def refresh(self) -> None:
        """Start more actors if fewer are running than wanted and the cluster has room."""
        plan = self._plan
        if plan is None or self._config.address is None or plan.per_client or self.pool.starting:
            return
        wanted = self._population if self._config.actors == "pool" else plan.count
        missing = wanted - len(self.pool)
        if missing > 0 and (more := self._running_room.more(self.pool.next_slots(missing))):
            self._note(f"the cluster has room for more: starting {more} actors")
            self.pool.grow(more)

    def close(self, others: Callable[[], Iterable[Any]]) -> None:
        """Kill all actors and the run's ``others``, and disconnect from Ray."""
        if self._starter is None:
            return
        if self._room is not None:
            self._room.stop()
        # A start that is half done cannot be undone; a complete one can.
        wait([self._opening], timeout=self._config.start_timeout_seconds)
        self._shown.close()
        if self._opening.done() and ray.is_initialized():
            self.pool.close()
            for actor in [*self._created, *others()]:
                ray.kill(actor, no_restart=True)
            if self._room is not None:
                self._room.release()
            if self._connected:
                ray.shutdown()
        self._created = []
        self._starter.shutdown(wait=self._opening.done())
        self._starter = None
