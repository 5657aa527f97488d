"""Opening of a run, before its first round: run location, checkpoint to resume, data, model, and executor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.configuration.schema import Config
from fedsim.core.errors import listed
from fedsim.display.progress import Progress
from fedsim.executors.about import submission
from fedsim.executors.cluster import local_cluster
from fedsim.executors.make import make_executor
from fedsim.kept.kept import Kept
from fedsim.planning.availability import availability_warning
from fedsim.planning.model_notes import model_notes
from fedsim.records.checkpoint import Checkpoint, load_latest, newest_round
from fedsim.records.folder_check import what_is_in
from fedsim.records.location import RunLocation, open_location
from fedsim.records.resumed_responses import check_rounds, check_when
from fedsim.records.resuming import as_recorded, check_config, check_contents, finished, from_same_place, sources_of
from fedsim.records.run_folder import RunFolder
from fedsim.records.trackers.trackers import Trackers, make_trackers
from fedsim.simulation.interrupt import InterruptWatch, RunInterrupted
from fedsim.simulation.privacy import privacy_plan

if TYPE_CHECKING:
    from fedsim.executors.base import Executor
    from fedsim.simulation.context import RunContext
    from fedsim.simulation.preparation import PartitionedData, Prepared


@dataclass(frozen=True)
class Opened:
    """An open run: about to begin, or already finished."""

    location: str
    """Path or URL of the run folder."""
    context: RunContext | None
    """Context of the run; None if it is finished."""
    checkpoint: Checkpoint | None = None
    """Checkpoint to continue from, if any."""
    summary: dict[str, Any] | None = None
    """Summary, if the run is finished."""


@contextmanager
def opened(config: Config, resume: bool, watch: InterruptWatch, progress: Progress) -> Iterator[Opened]:
    """Open a run, and close everything it holds on exit. Mistakes create no folder and change none.

    Raises
    ------
    FedsimError
        On a mistake in config, data or model, or missing resources.
    RunInterrupted
        After SIGINT or SIGTERM, also on exit; its ``kept`` names what is saved.
    """
    services = make_trackers(config)
    config, data = _settled(config, progress)
    plan = privacy_plan(config)
    # Mistakes in paths, data and model are found before the run folder is created.
    with open_location(config, resume, progress.note) as place, _saying_what_is_kept(place):
        if place.resume:
            config = as_recorded(config, place.path)
        done = finished(config, place.path) if place.resume else None
        if done is not None:
            _check_finished(place, config, progress, done, data)
            yield Opened(place.location, None, summary=done)
            return
        # Claim the folder before the slow work, begin it afterwards.
        with RunFolder.claim(place.path, resume=place.resume, mirror=place.mirror) as folder:
            checkpoint = _checkpoint(config, folder, progress) if place.resume else None
            begins_after = 0 if checkpoint is None else checkpoint.round
            starting = make_executor(config, watch.check, progress.note, begins_after)
            with local_cluster.discarded(), closing(starting) as executor:
                # Imported late: this loads torch and transformers, and quick mistakes should be reported first.
                prepared = _prepared(config, progress, executor, data)
                config = config.model_copy(update={"model": prepared.spec.model})  # with what was settled
                for note in () if plan is None else plan.notes:
                    progress.note(f"warning: {note}")
                if checkpoint is not None:
                    before = sources_of(place.path)
                    check_contents(checkpoint.contents, prepared.contents, config, folder.location, before)
                from fedsim.simulation.context import RunContext

                trackers = Trackers(services, folder.event, progress.note, config.tracking.flush_seconds)
                context = RunContext(config, prepared, executor, folder, progress, trackers)
                yield Opened(place.location, context, checkpoint)


def _settled(config: Config, progress: Progress) -> tuple[Config, PartitionedData | None]:
    """Return the config with its number of clients, and the data if they were read to find it."""
    if config.partition.clients is not None:
        return config, None
    from fedsim.simulation.preparation import settled

    progress.start_phase("reading data")
    return settled(config)


@contextmanager
def _saying_what_is_kept(place: RunLocation) -> Iterator[None]:
    try:
        yield
    except RunInterrupted as error:
        error.kept = _kept(place)
        raise


def _kept(place: RunLocation) -> str:
    """Return a clause on what is saved of an interrupted run and how to continue."""
    saved = newest_round(place.path / "checkpoints")
    if saved is not None:
        how = "continue with --resume" if submission() is None else "submit the job again with --resume"
        return f"the state after round {saved} is saved; {how}"
    again = "start it again" if what_is_in(place.path) == "nothing" else "start over with --resume"
    return f"no round has been saved; {again}"


def _check_finished(
    place: RunLocation, config: Config, progress: Progress, done: dict[str, Any], data: PartitionedData | None
) -> None:
    """Refuse a finished run if its data or weights, which may have moved, have changed."""
    check_when(config, place.path, place.location)
    if from_same_place(config, place.path):
        progress.note(f"{place.location} is finished; nothing to resume")
        return
    from fedsim.simulation.preparation import prepare

    prepared = prepare(config, progress.start_phase, data=data, kept=Kept.of(config.cache, progress.note))
    check_contents(done["contents"], prepared.contents, config, place.location, sources_of(place.path))
    progress.note(f"{place.location} is finished, with the same data and weights; nothing to resume")


def _checkpoint(config: Config, folder: RunFolder, progress: Progress) -> Checkpoint | None:
    checkpoint, skipped = load_latest(folder.checkpoints)
    for sentence in skipped:
        progress.note(f"warning: {sentence}")
    if checkpoint is None:
        progress.note(f"{folder.location} has no checkpoint yet; the run starts over")
        return None
    check_config(checkpoint, config, folder.location)
    anew = check_rounds(config, folder.path, checkpoint.round, folder.location)
    progress.note(f"resuming {folder.location} after round {checkpoint.round}")
    if anew:
        progress.note(f"its responses are written anew: {listed(anew, 5, 200)}")
    return checkpoint


def _prepared(config: Config, progress: Progress, executor: Executor, data: PartitionedData | None) -> Prepared:
    from fedsim.simulation.cut_notes import cut_notes
    from fedsim.simulation.preparation import prepare

    if (warning := availability_warning(config)) is not None:
        progress.note(warning)
    for sentence in model_notes(config):
        progress.note(f"warning: {sentence}")
    prepared = prepare(config, progress.start_phase, executor, data, Kept.of(config.cache, progress.note))
    tables = {"training": prepared.spec.train, "validation": prepared.spec.validation}
    for note in (*prepared.data.notes, *cut_notes(tables, config.data.max_length)):
        progress.note(note)
    return prepared
