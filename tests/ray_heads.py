"""A Ray head of a test's own: its own ports, temporary folder and token, and nothing of it left afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

MARK = "FEDSIM_TEST_MARK"
_START_SECONDS, _END_SECONDS = 60.0, 15.0


@dataclass(frozen=True)
class Head:
    """Where a head answers, and the environment of whoever wants to talk to it."""

    gcs: str
    """``ray.address`` of it."""
    dashboard: str
    """Where jobs are submitted."""
    environment: dict[str, str]
    metrics: str
    """Where its node exports metrics."""

    def metrics_of(self, run: str) -> dict[tuple[str, ...], float]:
        """Return the metrics of a run that are exported now, by name and the values of its own tags."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [each for family in families for each in family.samples if each.labels.get("run") == run]
        own = ("outcome", "direction", "phase", "evaluated", "actor", "le")
        return {(each.name, *(each.labels[tag] for tag in own if each.labels.get(tag))): each.value for each in samples}

    def ask(self, path: str, method: str = "GET") -> Any:
        """Return what the dashboard answers, as the commands ``ray list`` and ``ray job`` ask it."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.dashboard + path, None, token, method=method)
        ) as answer:
            return json.load(answer)


def clean_environment(mark: str) -> dict[str, str]:
    """Return this process's environment without what points to another Ray or to this checkout, and with a mark."""
    foreign = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    return {**environment, "PATH": path, "PYTHONUNBUFFERED": "1", MARK: mark}


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def left(mark: str, seconds: float = 45.0) -> list[str]:
    """Wait until no process with the mark lives; return those that still do.

    Ray's agents do not count: they tell a lost GCS about their lost raylet for a minute, then end. Most cannot be found
    by a mark anyway, as they write their title over their environment.
    """
    deadline = time.monotonic() + seconds
    while (living := [each for each in map(_titled, marked(mark)) if each]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return living


def _titled(process: psutil.Process) -> str:
    """Return a process's description, or nothing if it has ended or is an agent of Ray."""
    try:
        return "" if process.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent") else str(process)
    except psutil.Error:
        return ""


def end_marked(mark: str) -> None:
    """Kill every process that carries the mark, and those that they still start, until there are none."""
    deadline = time.monotonic() + _END_SECONDS
    while (processes := marked(mark)) and time.monotonic() < deadline:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=1)


@contextmanager
def ray_head(num_cpus: int, mode: str = "token") -> Iterator[Head]:
    """Start a head, with a token if ``mode`` is that, as ``ray start --head --block`` does; end it, remove its folder."""
    mark, token = uuid.uuid4().hex, secrets.token_hex(32)
    environment = {**clean_environment(mark), "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    # Short, and a job may take its time to end where others keep the processors busy.
    environment |= {"RAY_metrics_report_interval_ms": "3000", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))  # short: paths of sockets have at most 107 characters
    gcs, dashboard, client, agent, metrics = free_ports(5)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--num-cpus={num_cpus}", "--num-gpus=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--metrics-export-port={metrics}", f"--object-store-memory={150 * 2**20}"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        for port in (dashboard, metrics):
            _wait_for(port, process, folder / "head.log")
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment, f"127.0.0.1:{metrics}")
    finally:
        end_marked(mark)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the head did not start: {log.read_text()}")
