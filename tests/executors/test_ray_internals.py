"""What fedsim uses of Ray's inside: named in one module, and done without where this Ray has none of it."""

import ast
import os
import subprocess
import sys
import time

import pytest
from support import ROOT, sweep

from fedsim.executors.cluster import connect, lean, ray_internals

INSIDE = ("ray._private", "ray._raylet", "ray.core")
WORDS = ("_private", "_raylet", "ray.core")
"""Parsing only files with one of them saves most of the time."""
ALLOWED = {
    "fedsim/executors/cluster/ray_internals.py",
    "tests/executors/test_working_dir.py",  # packs a folder as Ray does
    "tests/executors/test_ray_internals.py",
}


UNKNOWN, METRICS = "ray_internals._module = lambda name: None", "config = RayConfig(num_cpus=1, metrics=True)"


def named_inside(source: str) -> set[str]:
    """Return what a module imports, or names in a text, of Ray's inside."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if f"{name}.".startswith(tuple(f"{inside}." for inside in INSIDE))}


def test_one_module_knows_the_inside_of_ray():
    folders = ("fedsim", "clients", "server", "partitions", "benchmarks", "examples", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    suspect = {name: source for name, source in sources.items() if any(word in source for word in WORDS)}
    found = {name: named_inside(source) for name, source in suspect.items()}
    assert found["fedsim/executors/cluster/ray_internals.py"]
    assert {name: what for name, what in found.items() if what and name not in ALLOWED} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.state",
        "from ray._private import state",
        "from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest",
        "importlib.import_module('ray._raylet')",
        "ray._private.worker._global_node",
    ],
)
def test_each_way_to_the_inside_is_seen(source):
    assert named_inside(source)


@pytest.fixture
def nothing_inside(monkeypatch):
    """A Ray without any of its private modules."""
    monkeypatch.setattr(ray_internals, "_module", lambda name: None)


def test_free_resources_of_a_node_are_those_that_ray_has_inside(session_ray, monkeypatch):
    deadline = time.monotonic() + 60
    inside = ray_internals.available_by_node()
    while any(free.get("CPU") != 4 for free in inside.values()):
        assert time.monotonic() < deadline, inside
        time.sleep(0.1)  # actors of the tests before are on their way out
        inside = ray_internals.available_by_node()
    monkeypatch.setattr(ray_internals, "_module", lambda name: None)
    public = ray_internals.available_by_node()
    assert public.keys() == inside.keys()
    for node, free in public.items():
        assert {name: free[name] for name in ("CPU", "GPU", "memory")} == {
            name: inside[node].get(name, 0.0) for name in ("CPU", "GPU", "memory")
        }


def test_on_several_nodes_nothing_is_promised_that_is_taken_anywhere(nothing_inside, monkeypatch):
    import ray

    nodes = [
        {"NodeID": name, "Alive": name != "c", "Resources": {"CPU": cpus}}
        for name, cpus in (("a", 4.0), ("b", 1.0), ("c", 9.0))
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    assert ray_internals.available_by_node() == {"a": {"CPU": 2.0}, "b": {"CPU": 0.0}}


def test_cpus_are_counted_with_the_control_groups_limit(nothing_inside, monkeypatch, tmp_path):
    monkeypatch.setattr(ray_internals, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    cpus = os.cpu_count()
    assert ray_internals.detected_cpus() == cpus
    for text, count in (
        ("max 100000", cpus),
        ("150000 100000", 1),
        ("100 100000", 1),
        (f"{cpus * 10}00000 100000", cpus),
    ):
        (tmp_path / "cpu.max").write_text(text)
        assert ray_internals.detected_cpus() == count


def test_a_head_is_not_asked_what_this_ray_does_not_know(nothing_inside):
    assert ray_internals.head_method() is None and ray_internals.store_statistics() is None
    connect._check_is_ray("127.0.0.1:1", "ray.address=127.0.0.1:1")  # nothing answers there


@pytest.mark.parametrize("before", sweep([UNKNOWN, METRICS], [UNKNOWN]))
def test_a_local_ray_that_keeps_its_agent_works_with_a_token_and_exports_metrics(before):
    """Because nothing can be left out where the inside of Ray is unknown, or because metrics are asked for."""
    program = (
        "import os\n"
        "from fedsim.executors.cluster import local_cluster, ray_internals\n"
        "from fedsim.executors.config import RayConfig\n"
        "config = RayConfig(num_cpus=1)\n"
        f"{before}\n"
        "local_cluster.secure()\n"
        "local_cluster.start(config, 0)\n"
        "import ray\n"
        "from fedsim.executors.ray.metrics import endpoints\n"
        "assert os.environ['RAY_AUTH_MODE'] == 'token' and os.environ['RAY_AUTH_TOKEN']\n"
        "assert ray.get(ray.remote(lambda: os.getpid()).remote()) > 0\n"
        "print(*(endpoint.partition(':')[0] for endpoint in endpoints()))\n"
        "ray.shutdown()\n"
        "local_cluster.discard()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0 and done.stdout.count(".") == 3, done.stderr
    if before == METRICS:
        assert done.stdout == "127.0.0.1\n"


def test_nothing_of_ray_is_changed_where_the_inside_is_unknown(nothing_inside):
    import ray

    before = ray._private.parameter.RayParams, ray._private.node.Node.start_api_server
    with lean.lean():
        assert (ray._private.parameter.RayParams, ray._private.node.Node.start_api_server) == before
