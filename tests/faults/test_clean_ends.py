"""Local clusters: two at once, one ended by SIGKILL, where they listen; and addresses that are not Ray's."""

import http.server
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import yaml
from ray_heads import MARK, left
from support import ROOT, tiny_values

import fedsim
from fedsim.core.errors import ResourceError
from fedsim.executors.cluster import connect as cluster
from fedsim.executors.cluster import local_cluster
from fedsim.executors.config import RayConfig
from fedsim.records.checkpoint import load_latest
from fedsim.records.temporary import sweep

CONFIG = {"rounds": 2000, "client": {"fuse": 2}, "ray": {"actors": 1, "num_cpus": 1}, "tracking": {"plots": False}}


@pytest.fixture
def base():
    """A folder for temporary files with a path as short as sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(path: Path, base: Path, output: Path, mark: str) -> subprocess.Popen:
    path.write_text(yaml.safe_dump(tiny_values(CONFIG)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(base), MARK: mark}
    environment["HOME"] = "/proc"  # where nobody can write, as in some containers
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "fedsim", "run", str(path), f"output={output}"]
    # In a folder with modules of the user's own that are called like ours: neither driver nor actors take them.
    for name in ("server.py", "clients.py", "partitions.py"):
        (path.parent / name).write_text("raise RuntimeError('not ours')\n")
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        cwd=path.parent,
    )  # fmt: skip


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses that a process and its children listen on."""
    found = set()
    for each in (process, *process.children(recursive=True)):
        try:
            found |= {at.laddr.ip for at in each.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def test_two_runs_at_once_keep_apart_and_a_killed_one_leaves_no_process(tiny_config, tmp_path, base):
    marks = [uuid.uuid4().hex for _ in range(2)]
    runs = [start(tmp_path / f"run-{i}.yaml", base, tmp_path / f"run-{i}", mark) for i, mark in enumerate(marks)]
    for run in runs:
        before = list(itertools.takewhile(lambda line: not line.startswith("round    1/"), run.stdout))
        assert run.poll() is None, run.stderr.read()
        assert not any("warning" in line for line in before)  # such as one of replaced functions
    folders = [next(base.glob(f"fedsim-ray-{run.pid}-*")) for run in runs]
    for run in runs:
        assert {ip.removeprefix("::ffff:") for ip in listening(psutil.Process(run.pid))} == {"127.0.0.1"}

    runs[0].send_signal(signal.SIGKILL)
    runs[0].communicate()
    runs[1].send_signal(signal.SIGTERM)
    _, errors = runs[1].communicate(timeout=120)
    assert runs[1].returncode == 128 + signal.SIGTERM, errors
    assert left(marks[0]) == left(marks[1]) == []
    assert sweep(local_cluster.PREFIX, base) == [folders[0]]
    assert list(base.glob("fedsim-*")) == []
    ended, _ = load_latest(tmp_path / "run-1" / "checkpoints")
    fedsim.run(
        tiny_config(**CONFIG | {"rounds": ended.round}, executor="local", output=str(tmp_path / "local")),
        progress=False,
    )
    expected, _ = load_latest(tmp_path / "local" / "checkpoints")
    assert ended.server.keys() == expected.server.keys()
    for name, array in ended.server.items():
        np.testing.assert_array_equal(array, expected.server[name])


@contextmanager
def http_server():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@contextmanager
def silent_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@contextmanager
def other_grpc_server():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (http_server, "^what answers at {} is not the head of a Ray cluster; give the address that"),
        (silent_port, "^what listens at {} has not answered within 0.5 s; give the address that"),
        (other_grpc_server, "^what answers at {} is not the head of a Ray cluster; give the address that"),
    ],
)
def test_what_is_no_ray_is_one_sentence_within_seconds(monkeypatch, what, sentence):
    """``ray.init`` would ask it for more than three minutes."""
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    with what() as port, pytest.raises(ResourceError, match=sentence.format(f"ray.address=127.0.0.1:{port}")):
        cluster._check_reachable(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(
        ResourceError, match=rf"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port} \(ray.address=auto\)"
    ):
        cluster._check_reachable("auto")


def test_a_head_is_known_as_one(session_ray):
    cluster._check_reachable(session_ray.get_runtime_context().gcs_address)


def test_a_ray_that_guards_nothing_is_not_started(monkeypatch):
    """``local`` is Ray's word for starting one, which then listens on all interfaces."""
    with pytest.raises(ResourceError, match=r"^ray.address=local names no cluster; set ray.address=null"):
        cluster.connect(RayConfig(address="local"), 0)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ResourceError, match=r"^RAY_ADDRESS=local \(ray.address=auto\) names no cluster"):
        cluster._check_reachable("auto")


def test_a_start_that_is_refused_does_not_spoil_its_folder(session_ray, tiny_config, tmp_path):
    output = str(tmp_path / "run")
    ray = {"address": "auto", "actors": 3, "num_cpus_per_actor": 64}
    with pytest.raises(ResourceError, match=r"ray.actors=3 needs 3 actors of 64 CPUs each"):
        fedsim.run(tiny_config(output=output, ray=ray), progress=False)
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    fedsim.run(tiny_config(output=output, executor="local", rounds=1), progress=False)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("address", ["nowhere", ":6379", "host:", "host:99999", "host:6379/", "http://host", "a b:²"])
def test_a_malformed_address_is_one_sentence(address):
    with pytest.raises(ResourceError, match=r"is not an address such as 10.0.0.1:6379; give one, or auto, or null$"):
        cluster._check_reachable(address)


def test_a_path_too_long_for_sockets_is_not_used(monkeypatch, tmp_path, base):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    assert local_cluster.base_folder() == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(base))
    assert local_cluster.base_folder() == base
