"""Room for a run's actors on a shared Ray: who waits, who is refused, what is reserved and given back. No actor is started."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.util import placement_group, remove_placement_group
from support import ROOT, sweep

from clients.actor import gpu_share
from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.labels import matches
from fedsim.executors.cluster.own_groups import OwnGroups, bundle_counts
from fedsim.executors.cluster.placement import memory_of_an_actor
from fedsim.executors.cluster.rooms import Room, room_for
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.reminder import Reminder

SECONDS = 60.0
GIGABYTE = 10**9


@pytest.fixture
def empty(session_ray):
    """The session's Ray, once nobody holds anything of it: 4 CPUs, 2 GPUs."""
    until(lambda: free("CPU") == 4 and free("GPU") == 2)
    yield session_ray
    until(lambda: free("CPU") == 4 and free("GPU") == 2)


@pytest.fixture
def rooms(empty):
    made = []

    def make(actor_bytes=None, name="mine", **values):
        made.append(OwnGroups(RayConfig(address="auto", **values), name, actor_bytes))
        return made[-1]

    yield make
    for room in made:
        room.stop()
        room.release()


def until(true):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free(name):
    return ray.available_resources().get(name, 0)


def test_one_run_has_all_and_the_next_waits_for_it(rooms):
    first, second = rooms(name="first"), rooms(name="second")
    assert first.reserve(1, 100).count == 4
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(second.reserve, 1, 100)
        until(lambda: second.waits_for)
        assert "waiting for room on the cluster for an actor (1 CPUs each); 0 of 4 CPUs are free" in second.waits_for
        assert "others are held by fedsim/first/" in second.waits_for
        assert first.more(range(4, 9)) == 0
        first.release()
        assert waiting.result(SECONDS).count == 4  # not only the one that was waited for
    assert not second.waits_for


def test_two_runs_that_begin_together_do_not_each_take_half(rooms):
    """Either one has all that it asks for while the other waits, whichever comes first."""
    both = [rooms(actors=3, num_cpus_per_actor=1) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        plans = [threads.submit(room.reserve, 1, 100) for room in both]
        until(lambda: any(plan.done() for plan in plans))
        done = next(index for index, plan in enumerate(plans) if plan.done())
        assert plans[done].result().count == 3
        until(lambda: both[1 - done].waits_for)
        assert not plans[1 - done].done()
        both[done].release()
        assert plans[1 - done].result(SECONDS).count == 3


def test_a_wait_ends_where_it_is_to(rooms):
    rooms().reserve(1, 100)
    with pytest.raises(
        ResourceError, match=r"^waited 0\.3 s \(ray\.wait_timeout_seconds\): waiting for room on the cluster"
    ):
        rooms(wait_timeout_seconds=0.3).reserve(1, 100)
    stopped = rooms()
    threading.Timer(0.2, stopped.stop).start()
    with pytest.raises(ResourceError, match="stopped while it waited"):
        stopped.reserve(1, 100)


def test_what_an_empty_cluster_would_not_hold_is_refused_at_once(rooms):
    rooms().reserve(1, 100)
    with pytest.raises(
        ResourceError, match=r"ray\.actors=9 needs 9 actors of 1 CPUs each, but only 4 fit; set ray\.actors=4"
    ):
        rooms(actors=9, num_cpus_per_actor=1).reserve(1, 100)


def test_a_run_grows_but_not_past_one_that_waits(rooms):
    tenant = placement_group([{"CPU": 2}])
    assert tenant.wait(SECONDS)
    room = rooms()
    assert room.reserve(1, 100).count == 2
    waits = placement_group([{"CPU": 3}])
    remove_placement_group(tenant)
    until(lambda: free("CPU") == 2)
    assert room.more(range(2, 100)) == 0
    remove_placement_group(waits)
    until(lambda: room.more(range(2, 100)) == 2)


def test_shares_of_a_gpu_are_packed(rooms):
    room = rooms(num_gpus_per_actor=1 / 3, num_cpus_per_actor=0.5, actors=3)
    assert room.reserve(1, 100).count == 3
    bundle = {room.options(slot)["scheduling_strategy"].placement_group_bundle_index for slot in range(3)}
    assert bundle == {0} and free("GPU") == 1


def test_gpus_of_an_actor_are_in_one_bundle_and_the_actor_is_given_all(rooms):
    room = rooms(num_gpus_per_actor=2, num_cpus_per_actor=1)
    assert room.reserve(1, 100).count == 1 and free("GPU") == 0
    options = room.options(0)
    (bundle,) = options["scheduling_strategy"].placement_group.bundle_specs
    assert (bundle["CPU"], bundle["GPU"]) == (1, 2)
    assert ray.get(ray.remote(gpu_share).options(**options).remote(), timeout=SECONDS) == 2
    with pytest.raises(
        ResourceError, match=r"no actor of 1 CPUs and 3 GPUs fits a node .*; set ray\.num_gpus_per_actor=2$"
    ):
        rooms(num_gpus_per_actor=3).reserve(1, 100)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.sampled_from([0.0, 1.0, 2.0, 1 / 2, 0.3333]))
def test_bundles_hold_every_actor_and_none_spans_two_nodes_or_gpus(nodes, share):
    counts = bundle_counts(nodes, share)
    assert sum(counts) == len(nodes)
    assert all(1 <= count <= (max(1, round(1 / share)) if share else 1) for count in counts)
    assert len(counts) >= len(set(nodes))


def test_memory_is_reserved_and_never_more_than_there_is(rooms):
    before = free("memory")
    room = rooms(actor_bytes=GIGABYTE, actors=2)
    room.reserve(1, 100)
    assert [room.options(slot)["memory"] for slot in range(2)] == [GIGABYTE] * 2 and not room.notes
    until(lambda: free("memory") == before - 2 * GIGABYTE)
    room.release()
    huge = rooms(actor_bytes=10**15, actors=2)
    huge.reserve(1, 100)
    (note,) = huge.notes
    assert note.startswith("actors are expected to need 1 PB each, but Ray has less memory free for them; they reserve")
    off = rooms(actor_bytes=GIGABYTE, memory="none")
    huge.release()
    off.reserve(1, 100)
    assert "memory" not in off.options(0) and not off.notes


@given(st.lists(st.sampled_from("abc"), min_size=1), st.dictionaries(st.sampled_from("abc"), st.integers(0, 100)))
def test_memory_of_all_actors_fits_wherever_they_are(placed, held):
    memory = memory_of_an_actor(30, placed, held)
    assert memory <= 30
    assert all(memory * placed.count(where) <= held.get(where, 0) for where in placed)
    assert memory == 30 or any((memory + 1) * placed.count(where) > held.get(where, 0) for where in placed)


def test_actors_go_where_labels_say_or_nowhere(rooms):
    assert rooms(labels={"zone": "in(here, there)"}).reserve(1, 100).count == 4
    with pytest.raises(ResourceError) as refused:
        rooms(labels={"zone": "eu"}, accelerator_type="H100").reserve(1, 100)
    assert str(refused.value).startswith(
        "no node of the cluster has the labels zone=eu (ray.labels) and ray.io/accelerator-type=H100 "
        "(ray.accelerator_type=H100); its 1 node have zone=here"
    )


@pytest.mark.parametrize(
    ("value", "held", "expected"),
    [
        ("eu", "eu", True), ("eu", "us", False), ("eu", None, False), ("!eu", "us", True), ("!eu", "eu", False),
        ("!eu", None, True), ("in(eu, us)", "us", True), ("in(eu,us)", "as", False), ("!in(eu, us)", "as", True),
        ("!in(eu, us)", "eu", False),
    ],
)  # fmt: skip
def test_labels_match_as_ray_says(value, held, expected):
    assert matches({} if held is None else {"zone": held}, {"zone": value}) is expected


DRIVER = """
import ray, sys
from fedsim.executors.cluster.own_groups import OwnGroups
from fedsim.executors.config import RayConfig
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
room = OwnGroups(RayConfig(address="auto"), "other")
print(room.reserve(1, 100).count, flush=True)
sys.stdin.read()
if sys.argv[2] == "closed":
    room.release()
"""


@pytest.mark.parametrize("end", sweep(["killed", "closed"], ["killed"]))
def test_a_driver_that_is_gone_holds_nothing(rooms, end):
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, address, end]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT, env=dict(os.environ)) as driver:
        assert driver.stdout.readline() == "4\n"
        with ThreadPoolExecutor(1) as thread:
            room = rooms()
            waiting = thread.submit(room.reserve, 1, 100)
            until(lambda: room.waits_for)
            driver.kill() if end == "killed" else driver.stdin.close()
            assert waiting.result(SECONDS).count == 4


def test_which_room_a_config_asks_for(empty):
    assert type(room_for(RayConfig(), "mine")) is Room
    assert type(room_for(RayConfig(address="auto", placement="none"), "mine")) is Room
    assert type(room_for(RayConfig(address="auto"), "mine")) is OwnGroups


def test_a_long_wait_is_told_of_at_once_and_ever_more_seldom():
    told, now = [], 0.0
    reminder = Reminder(lambda text: told.append((now, text)), lambda: now)
    while now < 3600:
        reminder.tell("waiting")
        now += 0.5
    times = [when for when, _ in told]
    assert times[:4] == [0, 60, 180, 420] and len(times) < 12
    assert told[0][1] == "waiting" and told[2][1] == "waiting; for 3 min now"
