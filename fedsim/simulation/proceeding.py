"""An open run up to its results: begin the folder, run the rounds, write prompt and summary."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from typing import Any

from fedsim.configuration.text import config_text
from fedsim.core.errors import FedsimError
from fedsim.executors.cluster import local_cluster
from fedsim.records.checkpoint import Checkpoint
from fedsim.records.folder_check import ATTACK, STOPPED
from fedsim.records.results import write_results
from fedsim.records.round_record import RoundRecord
from fedsim.records.run_folder import TensorBoard
from fedsim.records.versions import versions
from fedsim.simulation.context import RunContext
from fedsim.simulation.interrupt import RunInterrupted
from fedsim.simulation.loop import rounds
from fedsim.simulation.result import Result
from fedsim.simulation.stopping import Stop


def proceed(
    run: RunContext, checkpoint: Checkpoint | None, stop: Stop, started: float
) -> Generator[RoundRecord, None, dict[str, Any]]:
    """Run all rounds and write the results; yield each round when it is recorded. The generator returns the summary.

    Parameters
    ----------
    started
        Monotonic time at which the run was requested.
    """
    folder = run.folder
    folder.begin()
    try:
        _begin(run, checkpoint)
        with ExitStack() as stack:
            stack.callback(run.executor.close)
            if run.config.tracking.tensorboard:
                board = TensorBoard(folder.tensorboard, _first_round(checkpoint))
                stack.callback(board.close)
                run = replace(run, tensorboard=board)
            result = yield from rounds(run, checkpoint, stop)
            peak_memory = run.executor.peak_memory()
        about = {**_about(run, result, started), "peak_memory_bytes": peak_memory}
        return write_results(run.config, run.prepared, result, folder, run.progress, about)
    except (FedsimError, RunInterrupted, GeneratorExit) as error:
        reason, message = type(error).__name__, str(error)
        if isinstance(error, GeneratorExit):
            reason, message = stop.left
        with suppress(FedsimError):
            folder.event(STOPPED, reason=reason, message=message)
        if local_cluster.keep_logs(error, folder.ray_logs):
            run.progress.note(f"Ray's logs are in {folder.location}/{folder.ray_logs.name}")
        raise


def _first_round(checkpoint: Checkpoint | None) -> int:
    return checkpoint.round + 1 if checkpoint is not None else 0


def _begin(run: RunContext, checkpoint: Checkpoint | None) -> None:
    run.folder.truncate(_first_round(checkpoint))
    run.folder.write_config(config_text(run.config))
    if checkpoint is None and (attackers := run.prepared.spec.training.attackers):
        run.folder.event(ATTACK, round=0, kind=run.config.attack.kind, clients=attackers)


def _about(run: RunContext, result: Result, started: float) -> dict[str, Any]:
    """Return the summary's description of the run, without its figures."""
    config, dataset = run.config, run.prepared.data.dataset
    return {
        "name": config.name,
        "method": config.server.kind,
        "task": run.prepared.data.task.name,
        "model": config.model.location,
        "executor": config.executor,
        "ray": run.executor.found,
        "workers": [
            {key: value for key, value in asdict(worker).items() if key != "full"} for worker in result.workers
        ],
        "folder": run.folder.location,
        "seed": config.seed,
        "config_hash": config.identity,
        "contents": run.prepared.contents,
        "seconds_to_first_step": None if result.first_group_at is None else result.first_group_at - started,
        "versions": versions(),
        "plugins": config.plugins,
        "peak_memory_bytes": None,
        "fuse": run.executor.fuse,
        "trunk_cache": run.executor.caches.summary(),
        "cache": run.prepared.kept.summary(),
        "skipped_rows": dataset.train.skipped + dataset.validation.skipped,
    }
