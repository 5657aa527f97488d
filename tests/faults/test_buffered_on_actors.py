"""Buffered rounds on actors: the bytes of a run in this process, with any number of them, and whoever of them dies."""

import pyarrow.parquet as pq
import pytest
from support import make_tiny
from test_fault_matrix import kill_aggregator

from benchmarks.disturbed import run
from benchmarks.faulty import Fault
from fedsim.simulation.preparation import prepare

STALE = {
    "rounds": 6,
    "tracking": {"plots": False},
    "server": {"kind": "fedadam"},
    "client": {"fuse": 2, "optimizer": {"moments": "keep"}},
    "sampling": {"delay": {"seconds_per_example": 1.0, "device_spread": 1.5}},
    "buffer": {"size": 2, "concurrency": 6},
}
"""Slow and fast clients, which keep moments."""


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_tiny(**STALE))


@pytest.fixture(scope="module")
def local(prepared, tmp_path_factory):
    """Return the final prompt of a run in this process, and a client that a later step takes in."""
    folder = tmp_path_factory.mktemp("local") / "run"
    outcome = run(make_tiny(**STALE, executor="local"), prepared, folder)
    assert (outcome.error, outcome.ok) == (None, 12)
    rows = pq.read_table(folder / "clients.parquet").to_pylist()
    return outcome.vector_F, next(row["client"] for row in rows if row["staleness"] > 1)


@pytest.mark.parametrize("actors", [1, 3])
def test_actors_give_the_same_bits(session_ray, prepared, local, tmp_path, actors):
    config = make_tiny(**STALE, ray={"address": "auto", "actors": actors})
    outcome = run(config, prepared, tmp_path / "run")
    assert (outcome.error, outcome.ok, outcome.replaced) == (None, 12, 0)
    assert outcome.vector_F.tobytes() == local[0].tobytes()


def test_an_actor_and_the_aggregator_die_with_clients_under_way(session_ray, prepared, local, tmp_path):
    """The aggregator takes with it what it held for later steps; those clients train again."""
    fault = Fault("kill", local[1], tmp_path / "strikes", times=1)
    config = make_tiny(**STALE, ray={"address": "auto", "actors": 2})
    outcome = run(config, prepared, tmp_path / "run", fault, meanwhile=kill_aggregator)
    assert (outcome.error, len(fault.struck()), outcome.replaced) == (None, 1, 1)
    assert len(outcome.said("the aggregator actor, or sums on their way to it, were lost")) == 1
    assert outcome.vector_F.tobytes() == local[0].tobytes()
