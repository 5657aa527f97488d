"""An open run up to its results: begin the folder, run the rounds, write prompt and summary."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import asdict, replace
from typing import Any

from fedsim import __version__
from fedsim.configuration.text import config_text
from fedsim.core.errors import FedsimError
from fedsim.display.page.live_page import LivePage
from fedsim.executors.cluster import local_cluster
from fedsim.prompts.prompt_file import BEST_PROMPT, GLOBAL_PROMPT
from fedsim.records.checkpoint import Checkpoint
from fedsim.records.folder_check import ATTACK, STOPPED
from fedsim.records.results import write_results
from fedsim.records.resumed_responses import other_responses
from fedsim.records.round_record import RoundRecord
from fedsim.records.trackers.base import Status, TrackedRun
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
        with _tracked(run, checkpoint, stop):
            with ExitStack() as stack:
                stack.enter_context(closing(run.executor))
                page = stack.enter_context(LivePage.of(run.config, folder, run.progress.note))
                result = yield from rounds(replace(run, page=page), checkpoint, stop)
                peak_memory = run.executor.peak_memory()
            about = {**_about(run, result, started), "peak_memory_bytes": peak_memory}
            summary = write_results(run.config, run.prepared, result, folder, run.progress, about)
            _send_results(run, summary)
        return summary
    except (FedsimError, RunInterrupted, GeneratorExit) as error:
        reason, message = type(error).__name__, str(error)
        if isinstance(error, GeneratorExit):
            reason, message = stop.left
        with suppress(FedsimError):
            folder.event(STOPPED, reason=reason, message=message)
        if local_cluster.keep_logs(error, folder.ray_logs):
            run.progress.note(f"Ray's logs are in {folder.location}/{folder.ray_logs.name}")
        raise


def _tracked(run: RunContext, checkpoint: Checkpoint | None, stop: Stop) -> AbstractContextManager[Any]:
    """Return the block in which the run's trackers follow it."""
    config = run.config
    about = {
        "fedsim": __version__,
        "config_hash": config.identity,
        "method": config.server.kind,
        "task": run.prepared.data.task.name,
        "model": config.model.location,
    }
    return run.trackers.following(
        TrackedRun(config.name or run.folder.path.name, run.folder.path, config.tracking.group, about),
        config.model_dump(mode="json"),
        _first_round(checkpoint),
        run.folder.recorded_rounds() if config.tracking.names and checkpoint is not None else (),
        lambda error: _status(error, stop),
    )


def _status(error: BaseException, stop: Stop) -> Status:
    left_by_choice = isinstance(error, GeneratorExit) and stop.left[0] == Stop.LEFT[0]
    return "stopped" if left_by_choice or isinstance(error, RunInterrupted) else "failed"


def _send_results(run: RunContext, summary: dict[str, Any]) -> None:
    folder = run.folder
    pictures = sorted(folder.plots.glob("*.png")) if run.config.tracking.plots else []
    prompts = [folder.prompt / name for name in (GLOBAL_PROMPT, BEST_PROMPT)]
    run.trackers.results(summary, pictures, [path for path in prompts if path.exists()])
    if run.config.tracking.names:
        run.progress.start_phase("waiting for trackers")


def _first_round(checkpoint: Checkpoint | None) -> int:
    return checkpoint.round + 1 if checkpoint is not None else 0


def _begin(run: RunContext, checkpoint: Checkpoint | None) -> None:
    run.folder.truncate(_first_round(checkpoint))
    if other_responses(run.config, run.folder.path):
        run.folder.forget_responses()
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
