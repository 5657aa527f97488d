"""The Ray actor that embodies clients: a thin shell around :class:`clients.worker.ClientWorker`."""

from __future__ import annotations

import os
from typing import Any

import ray


@ray.remote(max_restarts=0, max_task_retries=0)
class ClientActor:
    """Embodies one client (``ray.actors: per_client``) or any client (a pool).

    Restarts and retries are left to the executor, which counts and reports them. Heavy imports happen in ``__init__``,
    in all actors at once.

    Parameters
    ----------
    spec
        A :class:`clients.worker.WorkerSpec`, handed over as an object-store reference, so its arrays are mapped and not
        copied.
    device
        ``auto``, ``cpu`` or ``cuda``; see :class:`clients.config.ModelConfig`.
    """

    def __init__(self, spec: Any, device: str) -> None:
        # The hub is asked once, by the driver; a hundred actors must not ask it again.
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from clients.device import resolve_device
        from clients.worker import ClientWorker

        granted = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
        self._worker = ClientWorker(spec, resolve_device(device, gpu_granted=granted))

    def info(self) -> Any:
        """Return the worker's :class:`clients.worker.WorkerInfo`."""
        return self._worker.info()

    def train(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.train`."""
        return self._worker.train(*arguments)

    def evaluate(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.evaluate`."""
        return self._worker.evaluate(*arguments)

    def evaluate_clients(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.evaluate_clients`."""
        return self._worker.evaluate_clients(*arguments)

    def score(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.score`."""
        return self._worker.score(*arguments)

    def spectrum(self, *arguments: Any) -> Any:
        """See :meth:`clients.worker.ClientWorker.spectrum`."""
        return self._worker.spectrum(*arguments)
