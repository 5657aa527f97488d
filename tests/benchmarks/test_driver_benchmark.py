"""What the driver does for a client update depends neither on registered clients nor on waiting groups."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from benchmarks.carrying import Carrying
from benchmarks.driver import ALL, MAIN, Driven, measure
from fedsim.core.messages import WorkGroup
from fedsim.executors.local import LocalExecutor
from fedsim.executors.ray.calls import train_call
from fedsim.executors.ray.queues import Queues
from fedsim.simulation.client_states import ClientStates
from server.blocks import BLOCK_GROUPS

OWN = ("fedsim", "server", "clients", "partitions")


def calls_of(work) -> Counter[str]:
    """Return how often each function of fedsim, or a C function called from one, is called by some work."""
    calls: Counter[str] = Counter()

    def count(frame, event, argument):
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] in OWN:
            if event == "call":
                calls[f"{module}.{frame.f_code.co_name}"] += 1
            elif event == "c_call":
                calls[f"{module}: {argument.__name__}"] += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def round_of(registered: int, cohort: int) -> Counter[str]:
    carrying = Carrying(LocalExecutor(lambda: None), registered, 200, group_size=5, cohort_size=cohort)
    carrying.start()
    carrying.round()
    return calls_of(carrying.round)


def test_a_round_makes_the_same_calls_however_many_clients_are_registered():
    few, many = round_of(20, 20), round_of(20_000, 20)
    assert few.total() > 500
    # Which group is least loaded depends on who is drawn; and a sort calls its key once a client.
    assert abs(few.total() - many.total()) <= 20, few - many + (many - few)


def test_a_clients_share_of_a_round_does_not_grow_with_the_cohort():
    small, large = round_of(2000, 100), round_of(2000, 1000)
    assert large.total() / 1000 <= small.total() / 100


class Actor:
    """Takes calls and runs none."""

    class train:  # noqa: N801 - the name of the method that is called
        @classmethod
        def options(cls, **_):
            return cls

        @staticmethod
        def remote(*_):
            return [object(), object()]


def queued(groups: int) -> Counter[str]:
    """Return the calls that sending and finishing ``groups`` groups takes, on two actors of two nodes."""
    states = ClientStates(groups)
    calls = [
        train_call(i, WorkGroup(0, i, (i,)), i // BLOCK_GROUPS, None, states, [], False, None) for i in range(groups)
    ]
    actors = {0: Actor(), 1: Actor()}

    def work():
        queues = Queues(calls, {0: "one node", 1: "another"})
        queues.fill(actors)
        while queues.unfinished:
            for slot in queues.heads().values():
                queues.pop(slot)
                queues.fill({slot: actors[slot]})

    return calls_of(work)


def test_queued_groups_cost_the_same_each_however_many_wait():
    few, many = queued(4 * BLOCK_GROUPS), queued(64 * BLOCK_GROUPS)
    assert many.total() <= 16 * few.total()


@pytest.mark.wide(alone="9 s: a benchmark")
def test_figures_are_per_group_and_per_update(session_ray):
    sides = {f"{n} registered": Driven(n, 10, {"address": "auto", "actors": 1}) for n in (10, 30)}
    rows = measure(sides, 1, "group", "small: ")
    assert [row.case for row in rows] == [f"small: {n} registered, {part}" for part in (MAIN, ALL) for n in (10, 30)]
    assert {row.unit for row in rows} == {"ms a group"} and all(row.value > 0 for row in rows)
    main, every = rows[0].value, rows[2].value
    assert main == pytest.approx(1e3 * sides["10 registered"].seconds[MAIN][0] / 2) and main <= every * 1.001
