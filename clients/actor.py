"""The Ray actor that acts as clients: a thin shell around :class:`clients.worker.ClientWorker`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import ray

from fedsim.core.imports import import_ahead, large_imports
from fedsim.core.memory import keep_freed_memory, peak_memory_bytes
from fedsim.core.messages import ClientState


@ray.remote(max_restarts=0, max_task_retries=0)
class ClientActor:
    """Acts as one client (``ray.actors: per_client``) or any client (a pool).

    The executor handles, counts and reports restarts and retries.

    Parameters
    ----------
    modules
        Imported at once: the driver creates actors before it has a specification, so that they import while it reads,
        tokenises and loads.
    spec, device
        As for :meth:`build`, for an actor that replaces another.
    label
        What this actor is and holds, for logs, ``ray list actors`` and the dashboard.
    metrics
        Where it reports its work, a :class:`fedsim.executors.ray.metrics.ActorMetrics`; None if nobody looks.
    """

    def __init__(
        self,
        modules: tuple[str, ...] = (),
        spec: Any = None,
        device: str = "auto",
        label: str = "",
        metrics: Any = None,
    ) -> None:
        self._label, self._metrics = label, metrics
        if metrics is not None:
            metrics.begin()
        # Only the driver queries the hub; a hundred actors must not repeat it.
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # A name of fedsim's comes first where Ray reads this class: see fedsim.core.siblings.
        with large_imports():
            _import_lean(modules)
        if spec is not None:
            self.build(spec, device)

    def __repr__(self) -> str:
        return self._label or "a client"

    def specify(self, make: Any, *arguments: Any) -> Any:
        """Return the :class:`clients.spec.WorkerSpec` that ``make`` makes of its arguments, and what it returns beside it."""
        with large_imports():
            return make(*arguments)

    def build(self, spec: Any, device: str) -> Any:
        """Build the worker and return :meth:`info`.

        Parameters
        ----------
        spec
            A :class:`clients.spec.WorkerSpec`, passed as an object-store reference, so its arrays are mapped, not copied.
        device
            ``auto``, ``cpu`` or ``cuda``; see :class:`clients.config.ModelConfig`.
        """
        import torch

        from clients.backbone.device import limit_memory, resolve_devices

        share = gpu_share()
        names = resolve_devices(device, share, gpu_granted=share > 0)
        limit_memory(share, torch.device(names[0]))
        keep_freed_memory()  # from here on: what loading has freed goes back to the system
        self._worker = spec.build(names)
        self._keeps_state = spec.keeps_state
        return self.info()

    def info(self) -> Any:
        """Return the worker's :class:`clients.spec.WorkerInfo`; its arrival means that the actor is ready."""
        return replace(self._worker.info(), node_id=ray.get_runtime_context().get_node_id())

    def peak_memory_bytes(self) -> int | None:
        """See :func:`fedsim.core.memory.peak_memory_bytes`."""
        return peak_memory_bytes()

    def train(self, group: Any, state: Any, *fetched: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.train`; returns the result packed by :meth:`TrainReturns.pack`.

        A client without a state among ``fetched`` keeps nothing, or nothing yet. If clients keep nothing, their states are not
        returned either: rounds and steps follow from the reports. Frozen-layer caches come last in ``fetched``, in the order
        of ``group.with_cached``.
        """
        cut = len(fetched) - len(group.with_cached)
        caches = {client: cached for client, cached in zip(group.with_cached, fetched[cut:], strict=True) if cached}
        states = _states(group.clients, fetched[:cut])
        returns = self._worker.train(group, state, *states, caches=caches)
        if self._metrics is not None:
            self._metrics.trained(returns.reports)
        return returns.pack(self._keeps_state)

    def try_fusing(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.try_fusing`."""
        return self._worker.try_fusing(*arguments)

    def evaluate(
        self, state: Any, start: int, stop: int, keep_cached: bool, keep_predictions: bool, cached: Any = None
    ) -> Any:
        """See :meth:`clients.worker.ClientWorker.evaluate`; returns the frozen-layer cache only with ``keep_cached``."""
        evaluation, cached = self._worker.evaluate(state, start, stop, cached, keep_predictions=keep_predictions)
        return (evaluation, cached) if keep_cached else evaluation

    def evaluate_clients(self, state: Any, fuse: int, personal: bool, clients: Any, *fetched: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.evaluate_clients`; client states are passed as in :meth:`train`."""
        return self._worker.evaluate_clients(state, *_states(clients, fetched), fuse=fuse, personal=personal)

    def generate(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.generate`."""
        return self._worker.generate(*arguments)

    def generate_clients(self, state: Any, fuse: int, clients: Any, *fetched: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.generate_clients`; client states are passed as in :meth:`train`."""
        return self._worker.generate_clients(state, *_states(clients, fetched), fuse=fuse)

    def score(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.score`."""
        return self._worker.score(*arguments)

    def spectrum(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.spectrum`."""
        return self._worker.spectrum(*arguments)


def _import_lean(modules: tuple[str, ...]) -> None:
    """Import what a worker needs; transformers comes first, as its models import what a worker does not need."""
    from clients.backbone.lean_imports import lean_imports

    with lean_imports():
        import_ahead(("transformers.modeling_utils", *modules))


def gpu_share() -> float:
    """Return the share of a GPU that this actor reserved, or the number of GPUs; 0 for none."""
    context = ray.get_runtime_context()
    return float(context.get_assigned_resources().get("GPU", 0.0)) if context.get_accelerator_ids().get("GPU") else 0.0


def _states(clients: Any, fetched: Any) -> list[ClientState]:
    """Return the state of each client, a fresh one if none was passed."""
    known = {state.client: state for state in fetched}
    return [known.get(client) or ClientState(client) for client in clients]
