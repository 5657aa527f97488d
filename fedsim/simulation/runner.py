"""One run from a config to a filled run folder: what ``fedsim run`` and :func:`fedsim.run` do."""

from __future__ import annotations

import math
import platform
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsim import __version__
from fedsim.configuration.schema import Config
from fedsim.configuration.text import config_text
from fedsim.core.errors import FedsimError
from fedsim.core.plugins import installed_versions
from fedsim.display.progress import Progress
from fedsim.display.screen import Screen
from fedsim.executors.base import Executor
from fedsim.executors.cluster import local_cluster
from fedsim.executors.make import make_executor
from fedsim.planning.model_notes import model_notes
from fedsim.records.checkpoint import Checkpoint, load_latest, newest_round
from fedsim.records.folder_check import ATTACK, STOPPED, what_is_in
from fedsim.records.location import RunLocation, open_location
from fedsim.records.resuming import check_config, check_contents, finished, from_same_place, sources_of
from fedsim.records.run_folder import RunFolder, TensorBoard
from fedsim.simulation.interrupt import InterruptWatch, RunInterrupted
from server.robust import robust_problem

if TYPE_CHECKING:
    from fedsim.simulation.preparation import PartitionedData, Prepared

_LIKELY = 0.05
"""Chance, over all rounds, from which on a warning is worth its line."""
_PACKAGES = ("ray", "torch", "transformers", "datasets", "numpy", "pyarrow", "safetensors")


def run_config(
    config: Config,
    *,
    resume: bool = False,
    console: Console | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a config and return its summary, the contents of ``summary.json``.

    Parameters
    ----------
    resume
        Go on from the newest checkpoint of ``config.output``, or of the newest run of this name; a run that is finished is
        left as it is, and one that has no checkpoint begins anew.
    console
        Where progress goes; standard output if not given.
    quiet
        Show notes only.

    Raises
    ------
    FedsimError
        A mistake in config, data or model, missing resources, or a failing client.
    RunInterrupted
        After SIGINT or SIGTERM; it says what is saved.
    """
    started = time.monotonic()
    console = console or Screen()
    with (
        InterruptWatch() as watch,
        Progress(config.rounds, _metric_name(config), console, quiet) as progress,
        ExitStack() as stack,
    ):
        config, data = _settled(config, progress)
        # Mistakes in paths, data and model come to light before the run's folder is made.
        place = stack.enter_context(open_location(config, resume, progress.note))
        done = finished(config, place.path) if place.resume else None
        if done is not None and from_same_place(config, place.path):
            progress.note(f"{place.location} is finished; nothing to resume")
            return done
        try:
            if done is not None:
                return _check_at(place, config, progress, done, data)
            return _run_at(place, config, watch, progress, started, data)
        except RunInterrupted as error:
            error.kept = _kept(place)
            raise


def _settled(config: Config, progress: Progress) -> tuple[Config, PartitionedData | None]:
    """Return the config with its number of clients; where the data say it, with the data."""
    if config.partition.clients is not None:
        return config, None
    from fedsim.simulation.preparation import settled

    progress.start_phase("reading data")
    return settled(config)


def _check_at(
    place: RunLocation, config: Config, progress: Progress, done: dict[str, Any], data: PartitionedData | None
) -> dict[str, Any]:
    """Return the summary of a finished run if data and weights, which may have moved, are those that it was made with."""
    from fedsim.simulation.preparation import prepare

    prepared = prepare(config, progress.start_phase, data=data)
    check_contents(done["contents"], prepared.contents, config, place.location, sources_of(place.path))
    progress.note(f"{place.location} is finished, with the same data and weights; nothing to resume")
    return done


def _run_at(
    place: RunLocation,
    config: Config,
    watch: InterruptWatch,
    progress: Progress,
    started: float,
    data: PartitionedData | None,
) -> dict[str, Any]:
    # Claimed before the long work, begun after it: mistakes in data and model leave no folder, and change none.
    with RunFolder.claim(place.path, resume=place.resume, mirror=place.mirror) as folder:
        checkpoint = _checkpoint(config, folder, progress) if place.resume else None
        with local_cluster.discarded(), closing(make_executor(config, watch.check, progress.note)) as executor:
            # Imported now: this brings torch and transformers, and the quick mistakes have been answered.
            from fedsim.simulation.preparation import prepare

            if (warning := availability_warning(config)) is not None:
                progress.note(warning)
            for sentence in model_notes(config):
                progress.note(f"warning: {sentence}")
            prepared = prepare(config, progress.start_phase, executor, data)
            for note in prepared.data.notes:
                progress.note(note)
            if checkpoint is not None:
                before = sources_of(place.path)
                check_contents(checkpoint.contents, prepared.contents, config, folder.location, before)
            folder.begin()
            try:
                return _run_in(config, prepared, executor, folder, progress, checkpoint, started)
            except (FedsimError, RunInterrupted) as error:
                with suppress(FedsimError):
                    folder.event(STOPPED, reason=type(error).__name__, message=str(error))
                if local_cluster.keep_logs(error, folder.ray_logs):
                    progress.note(f"Ray's logs are in {folder.location}/{folder.ray_logs.name}")
                raise


def _kept(place: RunLocation) -> str:
    """Say what is kept of a run that was interrupted, and how to go on, as half a sentence."""
    saved = newest_round(place.path / "checkpoints")
    if saved is not None:
        return f"the state after round {saved} is saved; continue with --resume"
    again = "start it again" if what_is_in(place.path) == "nothing" else "begin anew with --resume"
    return f"no round has been saved; {again}"


def availability_warning(config: Config) -> str | None:
    """Say so if ``sampling.dropout`` is likely to leave a round with fewer clients than ``server.aggregation`` needs."""
    drawn, dropout = config.sampling.clients_per_round, config.sampling.dropout
    if dropout == 0:
        return None
    problems = {many: robust_problem(config.server, many) for many in range(1, drawn + 1)}
    chances = {many: _chance(many, drawn, dropout) for many, problem in problems.items() if problem is not None}
    if 1 - (1 - min(1.0, sum(chances.values()))) ** config.rounds < _LIKELY:
        return None
    return (
        f"warning: with sampling.dropout={dropout:g} about {drawn * (1 - dropout):.1f} of a round's {drawn} clients are in "
        f"reach, and a round with too few of them ends the run: {problems[max(chances, key=chances.__getitem__)]}"
    )


def _chance(many: int, drawn: int, dropout: float) -> float:
    """Return the chance that ``many`` of a cohort take part; where it would be none of them, one does."""

    def binomial(k: int) -> float:
        ways = math.lgamma(drawn + 1) - math.lgamma(k + 1) - math.lgamma(drawn - k + 1)
        return math.exp(ways + k * math.log1p(-dropout) + (drawn - k) * math.log(dropout))

    return binomial(many) + (binomial(0) if many == 1 else 0.0)


def _metric_name(config: Config) -> str:
    from fedsim.data.tasks import resolve_task

    return resolve_task(config.data.task).metric


def _run_in(
    config: Config,
    prepared: Prepared,
    executor: Executor,
    folder: RunFolder,
    progress: Progress,
    checkpoint: Checkpoint | None,
    started: float,
) -> dict[str, Any]:
    from fedsim.records.results import write_results
    from fedsim.simulation.loop import Simulation

    folder.truncate(_first_round(checkpoint))
    folder.write_config(config_text(config))
    if checkpoint is None and (attackers := prepared.spec.settings.attackers):
        folder.event(ATTACK, round=0, kind=config.attack.kind, clients=attackers)
    with ExitStack() as stack:
        stack.callback(executor.close)
        board = TensorBoard(folder.tensorboard, _first_round(checkpoint)) if config.tracking.tensorboard else None
        if board is not None:
            stack.callback(board.close)
        simulation = Simulation(config, prepared, executor, folder, progress, board)
        result = simulation.run(checkpoint)
        peak_memory = executor.peak_memory()
    summary = {
        "name": config.name,
        "method": config.server.kind,
        "task": prepared.data.task.name,
        "model": config.model.location,
        "executor": config.executor,
        "workers": [
            {key: value for key, value in asdict(worker).items() if key != "full"} for worker in result.workers
        ],
        "folder": folder.location,
        "seed": config.seed,
        "config_hash": config.identity,
        "contents": prepared.contents,
        "seconds_to_first_step": None if result.first_group_at is None else result.first_group_at - started,
        "versions": versions(),
        "plugins": config.plugins,
        "peak_memory_bytes": peak_memory,
        "fuse": executor.fuse,
        "trunk_cache": executor.caches.summary(),
        "skipped_rows": prepared.data.dataset.train.skipped + prepared.data.dataset.validation.skipped,
    }
    return write_results(config, prepared, result, folder, progress, summary)


def _first_round(checkpoint: Checkpoint | None) -> int:
    return checkpoint.round + 1 if checkpoint is not None else 0


def _checkpoint(config: Config, folder: RunFolder, progress: Progress) -> Checkpoint | None:
    checkpoint, skipped = load_latest(folder.checkpoints)
    for sentence in skipped:
        progress.note(f"warning: {sentence}")
    if checkpoint is None:
        progress.note(f"{folder.location} has no checkpoint yet; the run begins anew")
        return None
    check_config(checkpoint, config, folder.location)
    progress.note(f"resuming {folder.location} after round {checkpoint.round}")
    return checkpoint


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"fedsim": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return {**found, **installed_versions()}
