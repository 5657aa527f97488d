"""Whole runs on real actors in which something dies: the same bytes, or exactly the client at fault is left out.

What becomes of single calls is in tests/executors/test_dispatch.py; ``python -m benchmarks.faults`` goes through all of it.
"""

import threading

import psutil
import pytest
from support import make_tiny

from benchmarks.disturbed import run
from benchmarks.faulty import Fault
from fedsim.preparation import prepare

COHORT = {"sampling": {"clients_per_round": 12}, "group_size": 4, "rounds": 3, "tracking": {"plots": False}}
"""Every client every round, in three groups, so that any client is sure to train."""
ACTORS = {"ray": {"address": "auto", "actors": 1}}


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_tiny(**COHORT))


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """Return the final prompt of a run without faults."""
    outcome = run(make_tiny(**COHORT, executor="local"), prepared, tmp_path_factory.mktemp("undisturbed") / "run")
    return outcome.vector_F.tobytes()


def kill_aggregator(simulation, over: threading.Event) -> None:
    """Kill the aggregator when the first round is done."""
    while not over.wait(0.005):
        if simulation._round >= 1:
            for process in psutil.process_iter(["cmdline"]):
                if "ray::AggregatorActor" in " ".join(process.info["cmdline"] or ()):
                    process.kill()
                    return


def test_actor_and_aggregator_die(session_ray, prepared, undisturbed, tmp_path):
    fault = Fault("kill", 5, tmp_path / "strikes", times=2, round=2)
    outcome = run(make_tiny(**COHORT, **ACTORS), prepared, tmp_path / "run", fault, meanwhile=kill_aggregator)
    assert outcome.error is None
    assert outcome.vector_F.tobytes() == undisturbed
    assert (len(fault.struck()), outcome.replaced, outcome.resent) == (2, 2, 8)
    assert (outcome.ok, outcome.failed) == (36, 0)
    assert len(outcome.said("the aggregator actor, or sums on their way to it, were lost")) == 1


def test_the_client_that_kills_its_actor_is_dropped(session_ray, prepared, tmp_path):
    fault = Fault("kill", 5, tmp_path / "strikes", times=3, round=1)
    config = make_tiny(**COHORT, **ACTORS, client={"on_failure": "drop"})
    outcome = run(config, prepared, tmp_path / "run", fault)
    assert (outcome.error, len(fault.struck()), outcome.ok, outcome.failed) == (None, 3, 35, 1)
    assert outcome.said("client 5 failed in round 2: its actor was lost")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("raise", "client 5 was told to fail"), ("shape", "returned a vector of shape"), ("nan", "NaN or infinite")],
)
def test_a_client_whose_work_is_of_no_use_is_dropped(prepared, tmp_path, monkeypatch, kind, words):
    import clients.group

    monkeypatch.setattr(clients.group, "train_clients", clients.group.train_clients)  # put back what the fault replaces
    times = 1 if kind == "nan" else 2  # in its group, and by itself
    fault = Fault(kind, 5, tmp_path / "strikes", times)
    config = make_tiny(**COHORT, executor="local", client={"on_failure": "drop"})
    outcome = run(config, prepared, tmp_path / "run", fault)
    assert (outcome.error, outcome.ok, outcome.failed) == (None, 35, 1)
    assert words in outcome.said("client 5 failed in round 1")[0]
