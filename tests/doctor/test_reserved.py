"""``fedsim doctor`` on a cluster that others use: what is reserved, by node and by whom, and who waits."""

import json
import time
from contextlib import ExitStack

import jsonschema
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from fedsim.cli.outputs import output_schema
from fedsim.executors.cluster.own_groups import OwnGroups
from fedsim.executors.cluster.reservations import OUTSIDE, Amounts, owner, reservations
from fedsim.executors.config import RayConfig

MB = 10**6
SECONDS = 30.0


def holder():
    """Return a class of actors; of a function's own, since actors cannot import a test module."""

    class Holds:
        def ready(self):
            return True

    return ray.remote(Holds)


@pytest.fixture
def shared(session_ray):
    """The session's Ray with a run of ours, somebody's search, an actor without a group, and one who waits."""
    until(lambda: ray.available_resources().get("CPU") == 4)
    with ExitStack() as ends:
        run = OwnGroups(RayConfig(address="auto", actors=2, num_cpus_per_actor=0.5), "sst2", 40 * MB)
        ends.callback(run.release)
        run.reserve(1, 2)
        for bundles, name in ([{"CPU": 0.5, "GPU": 1}], "search"), ([{"CPU": 99}] * 2, "later"):
            group = placement_group(bundles, name=name)
            ends.callback(remove_placement_group, group)
            assert group.wait(SECONDS if name == "search" else 0) == (name == "search")
        options = {"name": "fedsim/lone/client-0", "namespace": "fedsim/lone/1", "num_cpus": 0.25, "memory": 30 * MB}
        lone = holder().options(**options).remote()
        ends.callback(ray.kill, lone)
        assert ray.get(lone.ready.remote(), timeout=SECONDS)
        until(lambda: ray.available_resources().get("CPU") == 2.25)
        yield
    until(lambda: ray.available_resources().get("CPU") == 4)


def until(true):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_doctor_says_who_has_reserved_what_and_who_waits(shared, fedsim):
    status, out, _ = fedsim("doctor", "ray.address=auto", "--json")
    document = json.loads(out)
    jsonschema.validate(document, output_schema(), jsonschema.Draft202012Validator)
    findings = {found["what"].split(", ")[-1]: found for found in document["result"]["findings"]}
    node = findings["reserved"]
    held = {row.pop("by"): row for row in node["reserved"]}
    assert held == {
        "fedsim/sst2": {"state": "CREATED", "groups": 1, "cpus": 1, "gpus": 0, "memory_bytes": 80 * MB},
        "search": {"state": "CREATED", "groups": 1, "cpus": 0.5, "gpus": 1, "memory_bytes": 0},
        OUTSIDE: {"state": "", "groups": 0, "cpus": 0.25, "gpus": 0, "memory_bytes": 30 * MB},
    }
    assert node["status"] == "ok" and node["text"].startswith("1.75 of 4 CPUs, 1 of 2 GPUs and 110 MB of ")
    assert "fedsim/sst2: 1 CPUs and 80 MB of memory (1 placement group, CREATED)" in node["text"]
    waiting = findings["waiting for room"]
    assert waiting["status"] == "warning" and waiting["reserved"] == [
        {"by": "later", "state": "PENDING", "groups": 1, "cpus": 198, "gpus": 0, "memory_bytes": 0}
    ]
    assert findings["runs without a placement group of their own"]["text"] == "fedsim/lone"
    assert status == document["exit_code"]


def test_an_idle_cluster_has_nothing_reserved(session_ray):
    until(lambda: ray.available_resources().get("CPU") == 4)
    found = reservations()
    (node,) = found.nodes.values()
    assert not node.held and not found.waiting
    assert node.whole == node.free and node.whole.cpus == 4 and node.whole.memory_bytes > 0


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("fedsim/sst2/1f2e3d4c-0", "fedsim/sst2"),
        ("fedsim/a/b/client-0.2", "fedsim/a/b"),
        ("fedsim/mine", "fedsim/mine"),
        ("search", "search"),
        ("a/b/c", "a/b/c"),
        ("", "a placement group without a name"),
    ],
)
def test_a_group_is_known_by_its_name(name, whose):
    assert owner(name) == whose


def test_less_than_ray_counts_is_nothing():
    assert not Amounts.of({"CPU": 0.1 + 0.2 - 0.3, "memory": -1.0})
    assert Amounts.of({"CPU": 0.25, "other": 3.0}) == Amounts(0.25)
