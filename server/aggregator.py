"""The Ray actors of the server: thin shells around :class:`server.core.Server` and :func:`server.blocks.add_to_block`."""

from __future__ import annotations

from typing import Any

import ray

from fedsim.core.memory import keep_freed_memory, peak_memory_bytes
from server.blocks import add_to_block
from server.core import Server


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class AggregatorActor:
    """Owns the server state and takes the method's step.

    Updates arrive as references that Ray resolves here, so the driver never touches a tensor.

    Parameters
    ----------
    label
        What this actor is, for logs, ``ray list actors`` and the dashboard.
    metrics
        Where it reports its memory, a :class:`fedsim.executors.ray.metrics.ActorMetrics`; None if nobody looks.
    """

    def __init__(self, label: str = "", metrics: Any = None) -> None:
        self._label = label
        if metrics is not None:
            metrics.begin()
        keep_freed_memory()

    def __repr__(self) -> str:
        return self._label or "a server"

    def start(self, *arguments: Any) -> None:
        """Create the server, or replace it; see :class:`server.core.Server`."""
        self._server = Server(*arguments)

    def global_state(self, *version: int) -> Any:
        """See :meth:`server.core.Server.global_state`; the result is the round's one broadcast object."""
        return self._server.global_state(*version)

    def fold(self, *arguments: Any) -> None:
        """See :meth:`server.core.Server.fold`."""
        self._server.fold(*arguments)

    def apply(self, *arguments: Any, **named: Any) -> Any:
        """See :meth:`server.core.Server.apply`; also returns the whole state, so that it outlives this actor."""
        return self._server.apply(*arguments, **named), self._server.arrays()

    def peak_memory_bytes(self) -> int | None:
        """See :func:`fedsim.core.memory.peak_memory_bytes`."""
        return peak_memory_bytes()

    def arrays(self) -> Any:
        """See :meth:`server.core.Server.arrays`."""
        return self._server.arrays()

    def load_arrays(self, arrays: Any) -> int:
        """See :meth:`server.core.Server.load_arrays`."""
        return self._server.load_arrays(arrays)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class BlockActor:
    """Adds up the sums of a node's work groups, so that a block leaves the node as one object. Stateless.

    Parameters are as for :class:`AggregatorActor`.
    """

    def __init__(self, label: str = "", metrics: Any = None) -> None:
        self._label = label
        if metrics is not None:
            metrics.begin()
        keep_freed_memory()

    def __repr__(self) -> str:
        return self._label or "sums of a node"

    def add(self, block: Any, whole: bool, *updates: Any) -> Any:
        """See :func:`server.blocks.add_to_block`."""
        return add_to_block(block, updates, whole=whole)
