"""Sampling of a round's cohort, and its cut into work groups. Pure functions of (seed, round)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from fedsim.core import seeds
from fedsim.core.errors import ConfigError
from server.config import SamplingConfig


def cohort(config: SamplingConfig, seed: int, round: int, sizes_N: np.ndarray) -> np.ndarray:
    """Return the clients of a round in draw order.

    Parameters
    ----------
    config
        The ``sampling`` section.
    seed
        The run's root seed.
    round
        Round counted from 0.
    sizes_N
        Number of training examples of each of the N clients. Clients without any are never drawn.

    Returns
    -------
    np.ndarray
        int64 [clients_per_round], no client twice; with ``draw: poisson`` any number of clients, also none.

    Raises
    ------
    ConfigError
        If the cohort is larger than the population.
    """
    able = np.flatnonzero(np.asarray(sizes_N) > 0)
    size = config.clients_per_round
    if size > len(able):
        raise ConfigError(
            f"sampling.clients_per_round is {size}, but only {len(able)} clients have training examples; "
            f"set sampling.clients_per_round={len(able)} or less, or raise partition.clients"
        )
    if config.kind == "round_robin":
        turns = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "cohort").permutation(able)
        return turns[(round * size + np.arange(size)) % len(turns)]
    rng = seeds.stream(seed, round, seeds.NO_CLIENT, "cohort")
    if config.draw == "poisson":
        return rng.permutation(able[rng.random(len(able)) < size / len(able)])
    if config.kind == "uniform":
        return rng.permutation(able)[:size]
    # An exponential race: the order of arrival is a draw without replacement in proportion to the rates.
    times = rng.standard_exponential(len(able)) / np.asarray(sizes_N)[able]
    return able[np.argsort(times, kind="stable")[:size]]


def cut(cohort: Sequence[int] | np.ndarray, group_size: int, work_N: np.ndarray | None = None) -> list[tuple[int, ...]]:
    """Return the cohort's work groups: as few as possible, with balanced work, each with its clients in ascending order.

    The groups depend on the cohort, never on the number of actors, because sums are formed per group. The group with the most
    work comes first, so that no long one starts last (Graham's longest processing time first).

    Parameters
    ----------
    group_size
        Maximum number of clients per group.
    work_N
        Work of each client of the population, in any unit; if not given, groups are cut in the order of client ids.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be 1 or more, got {group_size}")
    ids = sorted(int(client) for client in cohort)
    if work_N is None:
        return [tuple(ids[start : start + group_size]) for start in range(0, len(ids), group_size)]
    work = {client: float(work_N[client]) for client in ids}
    lightest_first: list[tuple[float, int, list[int]]] = [(0.0, i, []) for i in range(-(-len(ids) // group_size))]
    full: list[tuple[float, int, list[int]]] = []
    for client in sorted(ids, key=lambda client: (-work[client], client)):
        load, i, clients = heapq.heappop(lightest_first)
        clients.append(client)
        grown = (load + work[client], i, clients)
        if len(clients) < group_size:
            heapq.heappush(lightest_first, grown)
        else:
            full.append(grown)
    by_load = sorted(full + lightest_first, key=lambda group: (-group[0], group[1]))
    return [tuple(sorted(clients)) for _, _, clients in by_load]
