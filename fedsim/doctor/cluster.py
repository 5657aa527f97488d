"""Checks of every cluster node: reachable, same package versions, free resources."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedsim.core.errors import ResourceError
from fedsim.display.report import format_bytes
from fedsim.doctor.findings import Finding, ok, problem, warning
from fedsim.executors.config import RayConfig
from fedsim.planning.machine import Gpu, Machine, disk_bytes, this_machine

NODE_SECONDS = 90.0
"""Time limit for all nodes: each starts a process, and unpacks the code if it is shipped."""
_DECIDES_RESULTS = ("fedsim", "python", "ray", "torch", "transformers", "numpy")
"""Packages that must have the same version on all nodes; others are used by the driver only, or change no number."""
_LITTLE_DISK = 2 * 10**9
_LITTLE_STORE = 256 * 10**6


@dataclass(frozen=True)
class NodeFacts:
    """Facts that a node reports about itself."""

    versions: dict[str, str]
    machine: Machine
    temporary_free_bytes: int | None


def node_facts() -> NodeFacts:
    """Return the facts of the node that this process runs on."""
    from fedsim.records.versions import versions

    return NodeFacts(versions(), this_machine(), disk_bytes(Path(tempfile.gettempdir()))[1])


def address_finding(config: RayConfig) -> Finding:
    """Return the finding about ``RAY_ADDRESS``."""
    from fedsim.executors.cluster.connect import _check_reachable

    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return ok("RAY_ADDRESS", "not set")
    if config.address is None:
        return ok("RAY_ADDRESS", f"{address}, which is not used: ray.address=null starts a local Ray cluster")
    try:
        _check_reachable("auto")
    except ResourceError as error:
        return (problem if config.address == "auto" else warning)("RAY_ADDRESS", str(error))
    return ok("RAY_ADDRESS", f"{address}, where something answers")


def cluster_findings(config: RayConfig, own: NodeFacts) -> list[Finding]:
    """Join the cluster at ``ray.address`` and return the findings about each of its nodes."""
    from fedsim.doctor.reserved import node_finding, waiting_findings
    from fedsim.executors.cluster.nodes import NoAnswer, ask_every_node, cluster_nodes, joined
    from fedsim.executors.cluster.reservations import reservations
    from fedsim.executors.ray.failures import first_line

    with tempfile.TemporaryFile("w+") as native:
        try:
            # Ray's native code prints to standard error why it cannot connect; its exception does not tell.
            with _standard_error_to(native), joined(config):
                nodes = cluster_nodes()
                reserved = reservations()
                answers = ask_every_node(nodes, node_facts, NODE_SECONDS)
        except ResourceError as error:
            native.seek(0)
            return [problem("cluster", _why(error, native.read()))]
        except Exception as error:  # Ray's exceptions share no base class, and the doctor itself must not fail
            return [problem("cluster", f"ray.address={config.address}: {type(error).__name__}: {first_line(error)}")]
    cpus, gpus = (sum(getattr(node.free, name) for node in nodes) for name in ("cpus", "gpus"))
    number_of_nodes = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    found = [ok("cluster", f"{number_of_nodes} at ray.address={config.address}, {cpus:g} CPUs and {gpus:g} GPUs free")]
    for number, (node, answer) in enumerate(zip(nodes, answers, strict=True)):
        name = f"node {number}, {node.address}"
        if node.id in reserved.nodes:  # else it has come since
            found.append(node_finding(name, reserved.nodes[node.id]))
        if isinstance(answer, NoAnswer):
            found.append(problem(name, f"cannot run fedsim: {answer.reason}"))
            continue
        found += [_versions(name, own.versions, answer.versions), _room(name, answer, node.store_bytes)]
        found += [_gpu(f"{name}, GPU {index}", gpu) for index, gpu in enumerate(answer.machine.gpus)]
    return found + waiting_findings(reserved)


def _why(error: ResourceError, native: str) -> str:
    if "InvalidAuthToken" not in native:
        return str(error)
    given = "is not the cluster's" if os.environ.get("RAY_AUTH_TOKEN") else "is not set"
    return f"{error}; the cluster asks for a token, and RAY_AUTH_TOKEN {given}; set RAY_AUTH_MODE=token and its head's token"


def _versions(name: str, own: dict[str, str], there: dict[str, str]) -> Finding:
    different = {package: f"{package} {there.get(package)} (here {version})" for package, version in own.items()
                 if there.get(package) != version}  # fmt: skip
    if not different:
        return ok(f"{name}, versions", "as here")
    text = ", ".join(different.values())
    if any(package in different for package in _DECIDES_RESULTS):
        return problem(
            f"{name}, versions",
            f"{text}; install the same versions on every node, or results may differ and runs may fail",
        )
    return warning(f"{name}, versions", text)


def _room(name: str, facts: NodeFacts, store_bytes: int | None) -> Finding:
    machine = facts.machine
    text = (
        f"{format_bytes(machine.memory_free_bytes)} of memory, {format_bytes(machine.shared_free_bytes)} of shared memory and "
        f"{format_bytes(facts.temporary_free_bytes)} of temporary disk free; object store {format_bytes(store_bytes)}"
    )
    little = [
        facts.temporary_free_bytes is not None and facts.temporary_free_bytes < _LITTLE_DISK,
        store_bytes is not None and store_bytes < _LITTLE_STORE,
    ]
    return (warning if any(little) else ok)(f"{name}, room", text + (": little" if any(little) else ""))


def _gpu(name: str, gpu: Gpu) -> Finding:
    return ok(name, f"{gpu.name}, {format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}")


@contextmanager
def _standard_error_to(file: IO[str]) -> Iterator[None]:
    """Redirect this process's standard error, native code included, to a file."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
