"""The driver's side of many whole runs on actors: start as many as fit, hand out runs, replace what is lost."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedsim.core.errors import FedsimError
from fedsim.executors.about import About
from fedsim.executors.cells.job import NOTHING, Doing, Ended, Job
from fedsim.executors.cluster.callers_group import group_of_caller
from fedsim.executors.cluster.connect import connect
from fedsim.executors.cluster.rooms import Room, room_for
from fedsim.executors.cluster.sizing import ActorPlan
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.appearance import Appearance
from fedsim.executors.ray.deadlines import START_KEY, wait_for
from fedsim.executors.ray.failures import SYSTEM_ERRORS, reason, task_error
from fedsim.executors.ray.reminder import Reminder
from fedsim.simulation.interrupt import retake_signals

_POLL_SECONDS = 0.5


@dataclass
class _Member:
    """An actor."""

    slot: int
    actor: Any
    shared: bool = True
    """Whether it sees the driver's folders."""
    job: Job | None = None
    asked: Any = None
    """Reference to its answer to what it is doing."""
    doing: Doing = NOTHING


class CellPool:
    """Actors that do whole runs; a context manager.

    Parameters
    ----------
    config
        The ``ray`` section: where, and what an actor reserves.
    threads
        CPU threads of a run.
    most
        Largest number of actors that is of use.
    data_bytes
        Bytes that will be stored for all actors.
    folder
        A folder of the driver's, in which the runs' folders are.
    modules
        Modules of transformers that the runs' models need.
    name
        What the study is called, for the names of its actors.
    check
        Raises when the user has interrupted.
    note
        Called with messages for the user.
    actor_bytes
        Main memory that an actor is expected to need; None if that is not known, or nobody asks.

    Raises
    ------
    ResourceError
        If no actor fits, or Ray does not start.
    """

    def __init__(
        self,
        config: RayConfig,
        threads: int,
        most: int,
        data_bytes: int,
        folder: Path,
        modules: tuple[str, ...],
        name: str,
        check: Callable[[], None],
        note: Callable[[str], None],
        actor_bytes: int | None = None,
    ) -> None:
        self._config = config
        self._name = name
        self._actor_bytes = actor_bytes
        self._threads = threads
        self._most = most
        self._data_bytes = data_bytes
        self._folder = folder
        self._modules = modules
        self._appearance = Appearance(config, About(name))
        self._check = check
        self._note = note
        self._connected = False
        self._room: Room | None = None
        self._members: list[_Member] = []
        self._weights: dict[str, Any] = {}
        self._lost: dict[str, int] = {}

    def __enter__(self) -> CellPool:
        self._connected = connect(self._config, self._data_bytes)
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def _start(self) -> None:
        from fedsim.executors.cells import actor

        actor_class: Any = actor.CellActor
        retake_signals()
        room = self._room = room_for(self._config, self._name, group_of_caller(self._config), self._actor_bytes)
        plan = self._reserved(room)
        for note in filter(None, (plan.note, *room.notes)):
            self._note(note)

        def create(slot: int) -> Any:
            named, shown = self._appearance.actor(f"cell-{slot}")
            return actor_class.options(max_concurrency=2, **room.options(slot), **named).remote(
                self._modules, shown["label"]
            )

        self._create = create
        self._members = [_Member(slot, self._create(slot)) for slot in range(plan.count)]
        self._look()

    def _reserved(self, room: Room) -> ActorPlan:
        """Make room for the actors, in a thread of its own, so that a wait for it can be interrupted."""
        told = Reminder(self._note)
        with ThreadPoolExecutor(1, thread_name_prefix="ray-room") as starter:
            opening = starter.submit(room.reserve, self._threads, self._most)
            try:
                while not opening.done():
                    wait([opening], timeout=_POLL_SECONDS)
                    self._check()
                    if room.waits_for:
                        told.tell(room.waits_for)
            finally:
                room.stop()
            return opening.result()

    def __exit__(self, *error: object) -> None:
        self._close()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def doing(self) -> list[Doing]:
        """What every busy actor was doing when last asked."""
        return [member.doing for member in self._members if member.job is not None]

    def run(self, jobs: Iterable[Job]) -> Generator[Ended | None, None, None]:
        """Do all jobs; yield each as it ends, in any order, and None about twice a second, for the display.

        A job whose actor is lost is taken up by another one, from its newest checkpoint, at most ``ray.max_replacements``
        times.
        """
        waiting = deque(jobs)
        running: dict[Any, _Member] = {}
        while waiting or running:
            for member in self._members:
                if waiting and member.job is None:
                    running[self._begin(member, waiting.popleft())] = member
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            self._check()
            for ref in ready:
                member = running.pop(ref)
                job, member.job = member.job, None
                assert job is not None
                ended = self._ended(ref, member, job)
                if ended is None:
                    waiting.append(job)
                else:
                    yield ended
            self._ask()
            yield None

    # -- one actor ---------------------------------------------------------------------------------------------------

    def _begin(self, member: _Member, job: Job) -> Any:
        if job.weights not in self._weights:
            self._weights[job.weights] = member.actor.weights.remote(job)
        member.job, member.doing, member.asked = job, Doing(job.name, 0), None
        return member.actor.do.remote(job, self._weights[job.weights], member.shared)

    def _ended(self, ref: Any, member: _Member, job: Job) -> Ended | None:
        """Return how a job ended; None if it is to be done again."""
        try:
            ended: Ended = ray.get(ref)
            return ended
        except ray_errors.RayTaskError as error:
            told = task_error(job.name, error)
            if isinstance(told, FedsimError):
                return Ended(job, str(told))
            why = str(told)
        except SYSTEM_ERRORS as error:
            why = reason(error)
            self._replace(member)
        self._weights.clear()  # its owner may have been the one that is lost
        lost = self._lost[job.name] = self._lost.get(job.name, 0) + 1
        if lost > self._config.max_replacements:
            return Ended(job, f"its actor was lost {lost} times, last: {why}; see ray.max_replacements, and memory")
        self._note(f"warning: {job.name}: its actor was lost ({why}); another one goes on")
        return None

    def _replace(self, member: _Member) -> None:
        ray.kill(member.actor, no_restart=True)
        member.actor = self._create(member.slot)
        (member.shared,) = self._seen([member.actor])

    def _ask(self) -> None:
        """Ask busy actors what they are doing, without waiting for the answers."""
        asked = {member.asked: member for member in self._members if member.asked is not None}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0) if asked else ([], [])
        for ref in ready:
            member, asked[ref].asked = asked[ref], None
            try:
                doing = ray.get(ref)
            except ray_errors.RayError:
                continue  # what it was doing ends with the same error
            if member.job is not None and doing.job == member.job.name:
                member.doing = doing
        for member in self._members:
            if member.job is not None and member.asked is None:
                member.asked = member.actor.doing.remote()

    # -- start and end -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Wait until all actors are there, and find out which of them see the driver's folders."""
        for member, shared in zip(self._members, self._seen([m.actor for m in self._members]), strict=True):
            member.shared = shared
        if apart := sum(not member.shared for member in self._members):
            self._note(
                f"{apart} of {len(self._members)} actors do not see {self._folder}; what they do comes back when it is finished"
            )

    def _seen(self, actors: list[Any]) -> list[bool]:
        token = secrets.token_hex(16)
        file = self._folder / f".seen-{token}"
        file.write_text(token, encoding="utf-8")
        try:
            refs = [actor.sees.remote(str(file), token) for actor in actors]
            limit, what = self._config.start_timeout_seconds, f"{len(actors)} actors to be ready"
            return wait_for(refs, limit, what, START_KEY, self._check)
        finally:
            file.unlink(missing_ok=True)

    def _close(self) -> None:
        for member in self._members:
            ray.kill(member.actor, no_restart=True)
        self._members = []
        self._weights = {}
        if self._room is not None:
            self._room.release()
        if self._connected:
            ray.shutdown()
