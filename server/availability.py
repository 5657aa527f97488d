"""Which clients of a cohort answer in time: simulated dropouts and delays. Pure functions of (seed, round, client).

Nothing waits for real, and nothing of it is a failure: both are part of what is studied, and are recorded apart.
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
    """What becomes of those who were drawn; all in the order drawn."""

    in_time: tuple[int, ...]
    """Clients that take part in the round."""
    absent: tuple[int, ...] = ()
    """Out of reach, by ``sampling.dropout``."""
    late: tuple[int, ...] = ()
    """In reach, but slower than ``sampling.delay.deadline_seconds``."""
    seconds: float | None = None
    """How long the server would have waited for real devices; None where ``sampling.delay`` simulates no time."""


def answers(
    config: SamplingConfig, drawn: Sequence[int], seed: int, round: int, trained_N: Sequence[int] | np.ndarray
) -> Answers:
    """Return who takes part in a round.

    Parameters
    ----------
    drawn
        The round's cohort, in the order drawn.
    round
        Counted from 0.
    trained_N
        Number of training examples that each client of the population takes in a visit, each as often as it is taken.
    """
    present, absent = in_reach(drawn, config.dropout, seed, round)
    delay = config.delay
    if not delay.seconds_per_example:
        return Answers(present, absent)
    seconds = {client: training_seconds(delay, seed, round, client, int(trained_N[client])) for client in present}
    fastest = min(present, key=lambda client: seconds[client])
    limit = math.inf if delay.deadline_seconds is None else delay.deadline_seconds
    # A round without any client is no round: the server waits for the first one at least.
    late = tuple(client for client in present if seconds[client] > limit and client != fastest)
    in_time = tuple(client for client in present if client not in late)
    slowest = max(seconds[client] for client in in_time)
    return Answers(in_time, absent, late, max(slowest, limit) if late else slowest)


def in_reach(order: Sequence[int], dropout: float, seed: int, round: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return those clients of a cohort that are in reach, and those that are not, both in the order drawn.

    Every client draws for itself, so who is out of reach does not depend on who else was drawn; where that would be all of
    them, the one that came nearest to being in reach is.

    Parameters
    ----------
    dropout
        Chance of being out of reach: ``sampling.dropout``.
    """
    if not dropout:
        return tuple(order), ()
    draws = {client: float(seeds.stream(seed, round, client, "dropout").random()) for client in order}
    suggestion = max(order, key=lambda client: draws[client])
    gone = tuple(client for client in order if draws[client] < dropout and client != suggestion)
    return tuple(client for client in order if client not in gone), gone


def training_seconds(config: DelayConfig, seed: int, round: int, client: int, examples: int) -> float:
    """Return how long a client's device takes for a visit: its work times its slowness, both log-normal around 1.

    Parameters
    ----------
    round
        Counted from 0.
    examples
        Training examples of the visit, each as often as it is taken.

    Returns
    -------
    float
        Seconds of a simulated device, not of this machine.
    """
    device = seeds.stream(seed, seeds.NO_ROUND, client, "device delay").standard_normal()
    job = seeds.stream(seed, round, client, "visit delay").standard_normal()
    slowness = math.exp(config.device_spread * device + config.visit_spread * job)
    return config.seconds_per_example * examples * slowness
