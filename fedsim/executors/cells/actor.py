"""The Ray actor that does whole runs, one after another, in its own process."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import ray

from clients.actor import gpu_share
from fedsim.core.imports import import_ahead, large_imports

_OURS = ("clients.worker", "fedsim.simulation.run", "fedsim.simulation.proceeding")
"""Imported as soon as an actor is there, while others start."""


@ray.remote(max_restarts=0, max_task_retries=0)
class CellActor:
    """Does whole runs with the local executor; created with two threads, it answers :meth:`doing` meanwhile.

    Parameters
    ----------
    modules
        Modules of transformers that the runs' models need.
    label
        What logs and Ray's dashboard call it.

    Notes
    -----
    Results depend neither on the executor nor on the number of workers, so that a run here ends with the same bytes as one by
    itself on all actors.
    """

    def __init__(self, modules: tuple[str, ...] = (), label: str = "") -> None:
        from clients.backbone.lean_imports import lean_imports
        from fedsim.executors.cells.job import NOTHING

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with large_imports(), lean_imports():
            import_ahead(("transformers.modeling_utils", *modules, *_OURS))
        self._held = ""
        self._label = label
        self._doing = NOTHING

    def __repr__(self) -> str:
        """Name it in logs and in Ray's dashboard."""
        return self._label or "runs of a study"

    def sees(self, file: str, token: str) -> bool:
        """Whether a file of the driver's is there for this process as well."""
        try:
            return Path(file).read_text(encoding="utf-8") == token
        except OSError:
            return False

    def weights(self, job: Any) -> Any:
        """Return the frozen weights of a job, for all that share them."""
        from fedsim.simulation.frozen_model import frozen_model

        return frozen_model(_config(job))[1]

    def doing(self) -> Any:
        """Return what :meth:`do` is doing, a :class:`fedsim.executors.cells.job.Doing`."""
        return self._doing

    def do(self, job: Any, weights: Any, shared: bool) -> Any:
        """Do a run, or what is left of it.

        Parameters
        ----------
        job
            A :class:`fedsim.executors.cells.job.Job`.
        weights
            What :meth:`weights` returned, passed as a reference.
        shared
            Whether the job's folder is the driver's; if not, the folder comes back as an archive.

        Returns
        -------
        Ended
            Also if the run failed by a mistake of the user's.
        """
        import torch

        from clients.backbone.device import limit_memory
        from clients.backbone.held_weights import hold

        if (share := gpu_share()) > 0 and torch.cuda.is_available():
            limit_memory(share, torch.device("cuda"))
        if job.weights != self._held:
            hold(job.weights, weights)
            self._held = job.weights
        if shared:
            return self._done(job, Path(job.folder))
        with tempfile.TemporaryDirectory(prefix="fedsim-cell-") as scratch:
            return self._done(job, Path(scratch) / "run", pack=True)

    def _done(self, job: Any, folder: Path, pack: bool = False) -> Any:
        from rich.console import Console

        from fedsim.core.errors import FedsimError
        from fedsim.executors.cells.job import NOTHING, Doing, Ended
        from fedsim.simulation.run import Run

        self._doing = Doing(job.name, 0)
        said = io.StringIO()
        try:
            config = _config(job).replace(output=str(folder))
            console = Console(file=said, width=10_000, color_system=None)
            with Run(config, resume=True, progress=False, console=console) as run:
                for done in run:
                    self._doing = Doing(job.name, done.round)
        except FedsimError as error:
            where = f" (on {socket.gethostname()})" if pack else ""
            return Ended(job, f"{error}{where}", _lines(said))
        finally:
            self._doing = NOTHING
        return Ended(job, None, _lines(said), _packed(folder) if pack else None)


def _config(job: Any) -> Any:
    from fedsim.configuration.schema import build_config
    from fedsim.core.plugins import load_source

    for plugin in job.plugins:
        load_source(plugin)
    return build_config(job.values, lambda key: job.name)


def _lines(said: io.StringIO) -> tuple[str, ...]:
    return tuple(line.strip() for line in said.getvalue().splitlines() if line.strip())


def _packed(folder: Path) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(folder, arcname=".")
    return target.getvalue()
