"""A plan as names and values, for ``fedsim plan --json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fedsim.configuration.schema import Config
from fedsim.planning.memory import MemoryEstimate
from fedsim.planning.plan import Plan


def plan_record(plan: Plan) -> dict[str, Any]:
    """Return the figures of a run on Ray."""
    actors = plan.actors
    return {
        "executor": "ray",
        "actors": actors.count,
        "cpus_per_actor": actors.num_cpus,
        "gpus_per_actor": actors.num_gpus,
        "limited_by": plan.limit,
        "clients_at_once": plan.cohort,
        "groups": plan.groups,
        "threads": plan.threads,
        "nodes": [
            {
                "name": node.name,
                "actors": placed,
                "cpus": node.free.cpus,
                "gpus": node.free.gpus,
                "memory_bytes": node.memory_bytes,
                "store_bytes": node.store_bytes,
                "gpu_bytes": node.gpu_bytes,
            }
            for node, placed in zip(plan.nodes, plan.placed, strict=True)
        ],
        "memory": _memory(plan.memory),
        "warnings": list(plan.warnings),
    }


def local_record(config: Config, memory: MemoryEstimate | None, warnings: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a run in one process."""
    return {
        "executor": "local",
        "actors": 0,
        "clients_at_once": config.clients_at_once,
        "groups": -(-config.clients_at_once // config.group_size),
        "threads": config.client.threads,
        "nodes": [],
        "memory": _memory(memory),
        "warnings": list(warnings),
    }


def _memory(memory: MemoryEstimate | None) -> dict[str, Any] | None:
    """Return bytes by purpose; None for a model whose size is not known."""
    if memory is None:
        return None
    values = {field.name: getattr(memory, field.name) for field in fields(memory)}
    return {name: value for name, value in values.items() if value is None or isinstance(value, bool | int | float)}
