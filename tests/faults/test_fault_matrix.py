"""Whole runs in which something dies or returns nonsense: exactly the client at fault is left out, and nothing else changes.

What becomes of an actor, and of a whole node, whose clients are not at fault: test_lost_node.py. What becomes of single
calls: tests/executors/test_dispatch.py; ``python -m benchmarks.faults`` goes through all of it.
"""

import threading
from contextlib import suppress

import psutil
import pytest
from support import make_tiny

from benchmarks.disturbed import run
from benchmarks.faulty import Fault
from fedsim.simulation.preparation import prepare

COHORT = {"sampling": {"clients_per_round": 12}, "group_size": 4, "rounds": 3, "tracking": {"plots": False}}
"""Every client every round, in three groups, so that any client is sure to train."""
# fuse is given: a trial could settle it differently in two runs, and so change last bits.
DROP = {"client": {"on_failure": "drop", "fuse": 4}}


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_tiny(**COHORT))


def kill_aggregator(underway, over: threading.Event) -> None:
    """Kill the aggregator of this process's Ray when the first round is done."""
    while not over.wait(0.005):
        if underway.round >= 1:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "ray::AggregatorActor" in " ".join(process.cmdline()):
                        process.kill()
                        return


def test_the_client_that_kills_its_actor_is_dropped_and_a_lost_aggregator_changes_nothing(
    session_ray, prepared, tmp_path
):
    """The bytes are those of a run in this process that is without that client then."""
    fault = Fault("kill", 5, tmp_path / "strikes", times=3)
    config = make_tiny(**COHORT, **DROP, ray={"address": "auto", "actors": 1})
    outcome = run(config, prepared, tmp_path / "run", fault, meanwhile=kill_aggregator)
    assert (outcome.error, len(fault.struck()), outcome.replaced) == (None, 3, 3)
    assert (outcome.ok, outcome.failed) == (35, 1)
    assert outcome.said("client 5 failed in round 1: its actor was lost")
    assert len(outcome.said("the aggregator actor, or sums on their way to it, were lost")) == 1

    raised = Fault("raise", 5, tmp_path / "raised", times=2)  # in its group, and by itself
    local = run(make_tiny(**COHORT, **DROP, executor="local"), prepared, tmp_path / "local", raised)
    assert (local.error, len(raised.struck()), local.failed) == (None, 2, 1)
    assert outcome.vector_F.tobytes() == local.vector_F.tobytes()


@pytest.mark.parametrize(
    ("kind", "words"),
    [("raise", "client 5 was told to fail"), ("shape", "returned a vector of shape"), ("nan", "NaN or infinite")],
)
def test_a_client_whose_work_is_of_no_use_is_dropped(prepared, tmp_path, kind, words):
    times = 1 if kind == "nan" else 2  # in its group, and by itself
    fault = Fault(kind, 5, tmp_path / "strikes", times)
    config = make_tiny(**COHORT, **DROP, executor="local")
    outcome = run(config, prepared, tmp_path / "run", fault)
    assert (outcome.error, outcome.ok, outcome.failed) == (None, 35, 1)
    assert words in outcome.said("client 5 failed in round 1")[0]
