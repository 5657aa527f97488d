"""Simulated dropouts and delays of a cohort. Pure functions of (seed, round, client).

Nothing actually waits, and neither counts as a failure: both are part of the experiment and recorded separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core import seeds
from server.config import DelayConfig, SamplingConfig


@dataclass(frozen=True)
class Answers:
    """Availability of the drawn clients; all in draw order."""

    in_time: tuple[int, ...]
    """Clients that take part in the round."""
    absent: tuple[int, ...] = ()
    """Unavailable, by ``sampling.dropout``."""
    late: tuple[int, ...] = ()
    """Available, but slower than ``sampling.delay.deadline_seconds``."""
    seconds: float | None = None
    """Simulated time that the server waited; None if ``sampling.delay`` simulates no time."""


def answers(
    config: SamplingConfig, drawn: Sequence[int], seed: int, round: int, trained_N: Sequence[int] | np.ndarray
) -> Answers:
    """Return the clients that take part in a round, and those that do not.

    Parameters
    ----------
    drawn
        The round's cohort, in draw order.
    round
        Counted from 0.
    trained_N
        Training examples that each client of the population processes per round, counted with repetition.
    """
    present, absent = in_reach(drawn, config.dropout, seed, round)
    delay = config.delay
    if not delay.seconds_per_example or not present:
        return Answers(present, absent)
    seconds = {client: training_seconds(delay, seed, round, client, int(trained_N[client])) for client in present}
    fastest = min(present, key=lambda client: seconds[client])
    limit = math.inf if delay.deadline_seconds is None else delay.deadline_seconds
    # A round needs at least one client, so the server always waits for the fastest.
    late = tuple(client for client in present if seconds[client] > limit and client != fastest)
    left_out = set(late)
    in_time = tuple(client for client in present if client not in left_out)
    slowest = max(seconds[client] for client in in_time)
    return Answers(in_time, absent, late, max(slowest, limit) if late else slowest)


def in_reach(order: Sequence[int], dropout: float, seed: int, round: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the available clients of a cohort and the unavailable ones, both in draw order.

    Every client draws for itself, so its availability does not depend on who else was drawn. If all would drop out, the one
    closest to being available stays.

    Parameters
    ----------
    dropout
        Probability of being unavailable: ``sampling.dropout``.
    """
    if not dropout or not order:
        return tuple(order), ()
    draws = {client: float(seeds.stream(seed, round, client, "dropout").random()) for client in order}
    suggestion = max(order, key=lambda client: draws[client])
    gone = tuple(client for client in order if draws[client] < dropout and client != suggestion)
    absent = set(gone)
    return tuple(client for client in order if client not in absent), gone


def training_seconds(config: DelayConfig, seed: int, round: int, client: int, examples: int) -> float:
    """Return the simulated time of a client's local training: its work times two log-normal slowness factors around 1.

    Parameters
    ----------
    round
        Counted from 0.
    examples
        Training examples processed, counted with repetition.

    Returns
    -------
    float
        Seconds of a simulated device, not of this machine.
    """
    device = seeds.stream(seed, seeds.NO_ROUND, client, "device delay").standard_normal()
    job = seeds.stream(seed, round, client, "visit delay").standard_normal()
    slowness = math.exp(config.device_spread * device + config.visit_spread * job)
    return config.seconds_per_example * examples * slowness
