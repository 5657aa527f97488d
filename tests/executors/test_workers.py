"""Actors that come as a cluster gets room for them."""

import time

import pytest
from ray.util import placement_group, remove_placement_group

from benchmarks.carrying import Carrying
from fedsim.configuration.schema import build_config
from fedsim.executors.make import make_executor

CLIENTS, ELEMENTS = 12, 400
READY_SECONDS = 60.0


@pytest.fixture
def tenant(session_ray):
    """Half of the CPUs, reserved by another user until the placement group is removed."""
    deadline = time.monotonic() + READY_SECONDS
    while session_ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.1)  # actors of the tests before are on their way out
    group = placement_group([{"CPU": 2}])
    assert group.wait(READY_SECONDS)
    yield group
    remove_placement_group(group)


def test_a_run_uses_room_that_its_cluster_gains(session_ray, tenant):
    settings = {"address": "auto", "actors": "pool", "num_cpus_per_actor": 2}
    config = build_config({"partition": {"clients": CLIENTS}, "ray": settings})
    notes = []
    executor = make_executor(config, lambda: None, notes.append)
    carrying = Carrying(executor, CLIENTS, ELEMENTS, group_size=1)
    try:
        carrying.start()
        carrying.round()
        assert list(executor._pool.ready) == [0]
        remove_placement_group(tenant)
        deadline = time.monotonic() + READY_SECONDS
        while len(executor._pool.ready) < 2 and time.monotonic() < deadline:
            executor.refresh()  # as at the start of each round
            carrying.round()
        assert list(executor._pool.ready) == [0, 1]
        assert notes == ["the cluster has room for more: starting 1 actors"]
        assert len({report.pid for report in carrying.round()}) == 2  # both have worked
        carrying.check()
    finally:
        carrying.close()
