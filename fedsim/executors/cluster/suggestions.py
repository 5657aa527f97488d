"""Suggestions where the requested actors do not fit: the closest requests that do, found by querying the planner."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedsim.executors.config import RayConfig

_STEPS_OF_A_CPU = 10_000
"""Ray's resource granularity is 1/10000."""
_MOST_CPUS = 1_000_000
_MOST = 10**12
"""More than any machine has; requests may be arbitrarily large."""


@dataclass(frozen=True)
class Request:
    """A request for actors, with the overrides that turn the user's request into it."""

    config: RayConfig
    threads: int
    population: int
    words: tuple[str, ...] = ()

    @property
    def count(self) -> int | None:
        """Number of actors; None for as many as fit."""
        if self.config.actors == "pool":
            return None
        return self.population if self.config.actors == "per_client" else self.config.actors

    def with_actors(self, count: int) -> Request:
        """Return the request for ``count`` actors."""
        return self._with(f"ray.actors={count}", actors=count)

    def with_cpus(self, steps: int) -> Request:
        """Return the request for this many ten-thousandths of a CPU per actor."""
        value = f"{steps / _STEPS_OF_A_CPU:.4f}".rstrip("0").rstrip(".")
        return self._with(f"ray.num_cpus_per_actor={value}", num_cpus_per_actor=float(value))

    def with_gpu_parts(self, parts: int) -> Request:
        """Return the request for one GPU shared by ``parts`` actors."""
        return self._with(f"ray.num_gpus_per_actor=1/{parts}", num_gpus_per_actor=1 / parts)

    def with_gpus(self, count: int) -> Request:
        """Return the request for this many whole GPUs per actor."""
        return self._with(f"ray.num_gpus_per_actor={count}", num_gpus_per_actor=float(count))

    def without_gpus(self) -> Request:
        """Return the request for CPU-only actors."""
        return self._with("ray.num_gpus_per_actor=0", num_gpus_per_actor=0.0)

    def with_threads(self, threads: int) -> Request:
        """Return the request for workers of ``threads`` threads."""
        return replace(self, threads=threads, words=(*self.words, f"client.threads={threads}"))

    def _with(self, words: str, **changes: float) -> Request:
        return replace(self, config=self.config.model_copy(update=changes), words=(*self.words, words))


Accepts = Callable[[Request], bool]
"""Whether the planner accepts a request; monotone: a smaller request is accepted whenever a larger one is."""


def nearest_requests(request: Request, accepts: Accepts) -> list[Request]:
    """Return requests that the planner accepts in place of one that it rejects.

    Each changes a single key by as little as possible; only if no single key suffices does one change several. Empty
    if nothing is free.
    """
    for asked in (request, request.without_gpus()) if request.config.num_gpus_per_actor else (request,):
        if asked is not request and accepts(asked):
            return [asked]
        if found := _by_one_key(asked, accepts) or _by_smallest_share(asked, accepts):
            return found
    return []


def most_actors(request: Request, accepts: Accepts) -> int:
    """Return how many of the requested actors the planner accepts."""
    return _largest((request.count or 1) - 1, lambda count: accepts(request.with_actors(count)))


def _by_one_key(request: Request, accepts: Accepts) -> list[Request]:
    config, found = request.config, []
    if request.count is not None:
        if count := most_actors(request, accepts):
            found.append(request.with_actors(count))
        if (gpus := _most_gpus(request, accepts)) > 0:
            found.append(request.with_gpus(gpus))
        elif parts := _fewest_parts(request, accepts):
            found.append(request.with_gpu_parts(parts))
    elif (gpus := _most_gpus(request, accepts)) > 0:
        found.append(request.with_gpus(gpus))
    elif (
        config.num_cpus_per_actor is None
        and (threads := _largest(request.threads - 1, lambda number: accepts(request.with_threads(number)))) > 0
    ):
        found.append(request.with_threads(threads))
    if config.num_cpus_per_actor is not None and (steps := _most_cpus(request, accepts)):
        found.append(request.with_cpus(steps))
    return found


def _by_smallest_share(request: Request, accepts: Accepts) -> list[Request]:
    """Return the request with the most actors that fit at the smallest CPU share, then with the largest share for them."""
    fewer = request
    if request.count is not None and not accepts(request.with_cpus(1)):
        count = _largest(request.count - 1, lambda count: accepts(request.with_cpus(1).with_actors(count)))
        if not count:
            return []
        fewer = request.with_actors(count)
    steps = _most_cpus(fewer, accepts)
    return [fewer.with_cpus(steps)] if steps else []


def _most_cpus(request: Request, accepts: Accepts) -> int:
    """Return the largest CPU reservation that fits, in ten-thousandths; 0 if none does."""
    given = min(request.config.num_cpus_per_actor or request.threads, _MOST_CPUS)
    return _largest(round(given * _STEPS_OF_A_CPU), lambda steps: accepts(request.with_cpus(steps)))


def _most_gpus(request: Request, accepts: Accepts) -> int:
    """Return the largest number of whole GPUs, fewer than asked for, that fits; 0 if none does."""
    asked = int(request.config.num_gpus_per_actor)
    return _largest(asked - 1, lambda count: accepts(request.with_gpus(count)))


def _fewest_parts(request: Request, accepts: Accepts) -> int:
    """Return the smallest number of parts a GPU must be split into; 0 if no split suffices."""
    if not request.config.num_gpus_per_actor:
        return 0
    cuts = range(max(2, round(1 / request.config.num_gpus_per_actor) + 1), _STEPS_OF_A_CPU + 1)
    place = bisect_left(cuts, True, key=lambda parts: accepts(request.with_gpu_parts(parts)))
    return cuts[place] if place < len(cuts) else 0


def _largest(upper: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from 1 to ``upper`` that fits; 0 if none does."""
    return bisect_left(range(1, min(upper, _MOST) + 1), True, key=lambda number: not fits(number))
