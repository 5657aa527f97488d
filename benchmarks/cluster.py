"""A multi-node cluster on this machine: one node is lost, another joins, and the result equals that of one process.

    python -m benchmarks.cluster                     # 1,000 clients, all of them in every round, on three nodes

Nodes are real: each has its own raylet, object store and workers, and losing one is a SIGKILL of all of it. Printed are
the actors per node, the location of the frozen weights, the effect of the loss, and whether the final prompt has the bytes of
a run in one process. ``--json`` prints the same as JSON. Exit status 1 if the bytes differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

STORE_BYTES = 150 * 2**20


def settings(arguments: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Return the config: small clients, many groups."""
    drawn: dict[str, Any] = {"sampling": {"clients_per_round": arguments.cohort or arguments.clients}}
    if arguments.buffer:
        drawn = {
            "server": {"kind": "fedavg"},
            "sampling": {"delay": {"seconds_per_example": 1.0, "device_spread": 1.5}},
            "buffer": {"size": arguments.buffer, "concurrency": arguments.cohort or arguments.clients},
        }
    return {
        "rounds": arguments.rounds,
        "group_size": 5,
        "data": {"train_examples": 4 * arguments.clients, "validation_examples": 100},
        "partition": {"kind": "iid", "clients": arguments.clients, "holdout_fraction": 0},
        **drawn,
        "prompt": {"length": 4},
        "layers": {"choose": "top"},
        # fuse is fixed: a fuse trial could decide differently in the two runs and change last bits.
        "client": {"epochs": 1, "fuse": 5},
        "tracking": {"plots": False},
        **changes,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=0, help="clients of a round; all if not given")
    parser.add_argument(
        "--buffer", type=int, default=0, help="buffered rounds: arrivals of a server step, while --cohort clients train"
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--lose", type=int, default=2, help="round, counted from 1, in which a node is lost; 0 for none"
    )
    parser.add_argument("--join", type=int, default=4, help="round in which a node joins; 0 for none")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments)
    print(json.dumps(found) if arguments.json else "\n".join(f"{key:28} {value}" for key, value in found.items()))
    return 0 if found["same bytes"] else 1


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run on nodes and in one process; return the findings."""
    from benchmarks.disturbed import run
    from fedsim.configuration.schema import build_config
    from fedsim.simulation.preparation import prepare

    config = build_config(settings(arguments, ray={"address": "auto"}))
    prepared = prepare(config)
    with tempfile.TemporaryDirectory() as folder, Nodes(arguments.nodes) as cluster:
        change = _Change(cluster, arguments.lose, arguments.join)
        started = time.monotonic()
        outcome = run(config, prepared, Path(folder) / "cluster", meanwhile=change)
        seconds = time.monotonic() - started
        if outcome.error is not None:
            sys.exit(f"error: {outcome.error}")
        events = _events(Path(folder) / "cluster")
    with tempfile.TemporaryDirectory() as folder:
        alone = run(build_config(settings(arguments, executor="local")), prepared, Path(folder) / "local")
    rounds = [event for event in events if event["event"] == "round"]
    assert outcome.vector_F is not None and alone.vector_F is not None
    return {
        "clients": arguments.clients,
        "groups a round": -(-(arguments.buffer or arguments.cohort or arguments.clients) // 5),
        "stalest client": max((event["staleness_max"] or 0 for event in rounds), default=0),
        "actors by node": sorted(change.actors.values(), reverse=True),
        "nodes with frozen weights": change.nodes_with_weights,
        "adders of block sums": change.adders,
        "seconds": round(seconds, 1),
        "seconds by round": [round(event["seconds_round"], 1) for event in rounds],
        "node lost, noticed after": None
        if change.lost_at is None
        else round(outcome.noticed_after(change.lost_at) or 0, 1),
        "actors replaced": outcome.replaced,
        "clients sent again": outcome.resent,
        "rounds done again": sum(event["event"] == "recovered" for event in events),
        "actors at the end": change.actors_at_end,
        "nodes at the end": change.nodes_at_end,
        "client updates": f"{outcome.ok} ok, {outcome.failed} failed",
        "notes": [text for _, text in outcome.notes],
        "same bytes": outcome.vector_F.tobytes() == alone.vector_F.tobytes(),
    }


NOTICED_SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""Ray's defaults take up to half a minute to notice that a node is gone."""


class Nodes:
    """Nodes of this machine, each with its own raylet; the driver is on the first.

    Parameters
    ----------
    cpus
        CPUs that each node says it has.
    """

    def __init__(self, nodes: int, cpus: int = 1) -> None:
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._joined: list[subprocess.Popen[bytes]] = []
        self._cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": NOTICED_SOON})
        self._others = [self._cluster.add_node(**node) for _ in range(nodes - 1)]
        self._cluster.wait_for_nodes()
        # The run joins what RAY_ADDRESS names, as it would on any cluster.
        os.environ["RAY_ADDRESS"] = self._cluster.address
        self._ray = ray

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()
        for process in self._joined:
            process.terminate()
            process.wait()
        self._cluster.shutdown()
        del os.environ["RAY_ADDRESS"]

    def lose(self) -> None:
        """Kill the last node and everything on it."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def join(self) -> None:
        """Add a node as by hand: in this process only the main thread may do so."""
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            f"--address={self._cluster.address}",
            "--block",
        ]
        command += ["--num-cpus=1", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        self._joined.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))


class _Change:
    """Removes a node during one round and adds one in another; records what is where."""

    def __init__(self, cluster: Nodes, lose: int, join: int) -> None:
        self._cluster = cluster
        self._lose, self._join = lose, join
        self.actors: Counter[str] = Counter()
        self.nodes_with_weights = 0
        self.adders = 0
        self.lost_at: float | None = None
        self.actors_at_end = self.nodes_at_end = 0

    def __call__(self, underway: Any, over: threading.Event) -> None:
        """Watch a run; see :func:`benchmarks.disturbed.run`."""
        import ray

        executor, joined = underway.executor, False
        while not over.wait(0.02):
            number = underway.round + 1
            training = underway.training and bool(executor._pool.ready)
            if not self.actors and training:
                self.actors = Counter(executor._pool.nodes.values())
                spec_ref = executor._workers._spec_ref
                self.nodes_with_weights = len(ray.experimental.get_object_locations([spec_ref])[spec_ref]["node_ids"])
                self.adders = len(executor.server._adders)
            if self._lose and training and number == self._lose and self.lost_at is None:
                self.lost_at = time.time()
                self._cluster.lose()
            if self._join and number == self._join and not joined:
                self._cluster.join()
                joined = True
            if executor._pool.ready:
                self.actors_at_end, self.nodes_at_end = len(executor._pool.ready), len({*executor._pool.nodes.values()})


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
