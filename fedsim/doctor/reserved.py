"""Findings about what is reserved on a cluster, by node and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.display.report import format_bytes
from fedsim.doctor.findings import Finding, Reserved, ok, warning

if TYPE_CHECKING:
    from fedsim.executors.cluster.reservations import Amounts, Held, NodeReservations, Reservations


def node_finding(name: str, node: NodeReservations) -> Finding:
    """Return what of a node is reserved, and by whom."""
    whole, free = node.whole, node.free
    parts = [f"{whole.cpus - free.cpus:g} of {whole.cpus:g} CPUs"]
    if whole.gpus:
        parts.append(f"{whole.gpus - free.gpus:g} of {whole.gpus:g} GPUs")
    memory = whole.memory_bytes - free.memory_bytes
    parts.append(f"{format_bytes(memory)} of {format_bytes(whole.memory_bytes)} of memory")
    by = "; ".join(map(_told, node.held)) or "nobody"
    return Finding(f"{name}, reserved", "ok", f"{_listed(parts)}, by {by}", tuple(map(_row, node.held)))


def waiting_findings(found: Reservations) -> list[Finding]:
    """Return who waits for room, and which runs of ours reserve nothing ahead."""
    told = []
    if found.waiting:
        what = "; ".join(map(_told, found.waiting))
        told.append(
            warning(
                "waiting for room",
                f"{what}: a run that starts now has to wait as well",
                tuple(map(_row, found.waiting)),
            )
        )
    if found.runs:
        told.append(ok("runs without a placement group of their own", ", ".join(found.runs)))
    return told


def _told(held: Held) -> str:
    groups = f" ({held.groups} placement group{'s' * (held.groups > 1)}, {held.state})" if held.groups else ""
    return f"{held.by}: {_amounts(held.amounts)}{groups}"


def _amounts(amounts: Amounts) -> str:
    parts = [f"{amounts.cpus:g} CPUs"] if amounts.cpus else []
    parts += [f"{amounts.gpus:g} GPUs"] if amounts.gpus else []
    parts += [f"{format_bytes(amounts.memory_bytes)} of memory"] if amounts.memory_bytes else []
    return _listed(parts) or "other resources"


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _row(held: Held) -> Reserved:
    amounts = held.amounts
    return Reserved(held.by, held.state, held.groups, amounts.cpus, amounts.gpus, amounts.memory_bytes)
