"""The runs of a study: as many at a time as fit, or one after another on all actors."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from fedsim.core.errors import ConfigError, FedsimError, ResourceError
from fedsim.core.plugins import hashes, loaded
from fedsim.executors.cells.job import Doing, Ended, Job
from fedsim.executors.cluster import local_cluster
from fedsim.study.cells import Cell
from fedsim.study.crew import Crew
from fedsim.study.fitting import stored_bytes
from fedsim.study.sharing import shared_ray
from fedsim.study.words import count

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


@dataclass(frozen=True)
class CellEnd:
    """A cell that is finished, or has failed."""

    cell: Cell
    sentence: str | None = None
    """Why it failed."""
    notes: tuple[str, ...] = ()
    """Messages of its run."""
    before: bool = False
    """Whether an earlier command had finished it."""


class Shows(Protocol):
    """What shows the progress of a study."""

    def running(self, doing: Sequence[Doing]) -> None:
        """Show what is running now."""

    def note(self, text: str) -> None:
        """Show a message that stays."""


def run_cells(crew: Crew, cells: Sequence[Cell], shows: Shows) -> Iterator[CellEnd]:
    """Do the cells that are not finished; yield every cell as it ends, in any order.

    Raises
    ------
    ConfigError
        If several runs at a time are asked for that must be in this process.
    RunInterrupted
        After SIGINT or SIGTERM; what is begun goes on from its newest checkpoint the next time.
    ResourceError
        If no actor fits, or Ray does not start.
    """
    missing = []
    for cell in cells:
        crew.watch.check()
        if crew.folder.is_finished(cell):
            yield CellEnd(cell, before=True)
        elif (sentence := crew.folder.why_not(cell)) is not None:
            yield CellEnd(cell, sentence)
        else:
            missing.append(cell)
            if (sentence := crew.folder.why_again(cell)) is not None:
                shows.note(f"{cell}: {sentence}")
    if not missing:
        return
    if crew.at_once is not None and crew.at_once > 1:
        _refuse_together(missing, crew.at_once)
    alone = _alone(missing) if crew.at_once is None else crew.at_once == 1
    run = _one_by_one if alone and not crew.is_there else _side_by_side
    yield from run(crew, missing, shows)


def check_together(cells: Sequence[Cell], at_once: int | None) -> None:
    """Refuse missing runs that cannot be done at the number at a time that is asked for.

    Raises
    ------
    ConfigError
        Naming what they cannot have.
    """
    if at_once is not None and at_once > 1:
        _refuse_together(cells, at_once)
    if cells and not (_alone(cells) if at_once is None else at_once == 1):
        shared_ray(cells)


def _refuse_together(cells: Sequence[Cell], at_once: int) -> None:
    """Refuse several runs at a time, each in a process of its own, where they must be in this one."""
    if "__main__" in hashes():
        why = "the kinds that this script or notebook has registered; put them into a file and load that"
    elif any(cell.config.executor == "local" for cell in cells):
        why = "executor=local; leave that out"
    else:
        return
    raise ConfigError(f"{at_once} runs at a time cannot have {why}, or do one at a time")


def _alone(cells: Sequence[Cell]) -> bool:
    """Whether runs must, or had better, be done one after another.

    What a script or a notebook has registered is known to this process alone; and with a single run all actors share it.
    """
    return len(cells) == 1 or "__main__" in hashes() or any(cell.config.executor == "local" for cell in cells)


def _side_by_side(crew: Crew, cells: Sequence[Cell], shows: Shows) -> Iterator[CellEnd]:
    """Do each run on one actor."""
    jobs = {job.name: (cell, job) for cell in cells if (job := job_of(cell, crew.folder.run(cell)))}
    began = not crew.is_there
    pool = crew.pool(cells, shows.note)
    if began:
        threads = max(cell.config.client.threads for cell in cells)
        each = f"runs at a time, each on one actor of {count(threads, 'thread')}"
        shows.note(f"{len(pool)} {each}" if len(pool) > 1 else "one run at a time")
    with closing(pool.run(job for _, job in jobs.values())) as ends:
        for ended in ends:
            if ended is None:
                shows.running(pool.doing)
                continue
            put_in_place(ended)
            yield CellEnd(jobs[ended.job.name][0], ended.sentence, ended.notes)


def _one_by_one(crew: Crew, cells: Sequence[Cell], shows: Shows) -> Iterator[CellEnd]:
    """Do one run after another with its own executor, in one Ray."""
    from fedsim.simulation.run import Run

    with _connected(cells) as joined:
        for cell in cells:
            crew.watch.check()
            config = cell.config.replace(output=str(crew.folder.run(cell)))
            if joined and config.executor == "ray":
                config = _joining(config)
            said = StringIO()
            sentence = None
            shows.running([Doing(str(cell), 0)])
            try:
                with Run(config, resume=True, progress=False, console=_console(said)) as run:
                    for done in run:
                        shows.running([Doing(str(cell), done.round)])
            except FedsimError as error:
                if isinstance(error, ResourceError) and cell is cells[0]:
                    raise  # the next one would fail for the same reason
                sentence = str(error)
            notes = tuple(line.strip() for line in said.getvalue().splitlines() if line.strip())
            yield CellEnd(cell, sentence, notes)


@contextmanager
def _connected(cells: Sequence[Cell]) -> Iterator[bool]:
    """Start, or join, one Ray for all runs; yield whether there is one."""
    config = next((cell.config for cell in cells if cell.config.executor == "ray"), None)
    if config is None or len(cells) == 1:
        yield False
        return
    if config.ray.address is None:
        local_cluster.secure()
    from fedsim.executors.cluster.nodes import joined

    with joined(config.ray, stored_bytes(cells)):
        yield True


def _joining(config: Config) -> Config:
    """Return the config of a run in the Ray that this process is connected to."""
    ray = config.ray.model_dump(mode="json", exclude_unset=True)
    ray = {key: value for key, value in ray.items() if key not in ("num_cpus", "num_gpus", "object_store_mb")}
    values = config.model_dump(mode="json", exclude_unset=True) | {"ray": {**ray, "address": "auto"}}
    return type(config)(**values)


def _console(file: StringIO) -> Console:
    return Console(file=file, width=10_000, color_system=None, highlight=False, markup=False, emoji=False)


# -- jobs --------------------------------------------------------------------------------------------------------------


def job_of(cell: Cell, folder: Path) -> Job:
    """Return the job of a cell whose run goes to a folder."""
    from clients.backbone.held_weights import key_of

    config = cell.config
    if config.model.device == "auto" and config.ray.num_gpus_per_actor == 0:
        config = config.replace(model={"device": "cpu"})
    values = config.model_dump(mode="json", exclude_unset=True) | {"executor": "local"}
    return Job(str(cell), values, str(folder), config.rounds, key_of(config.model), loaded())


def put_in_place(ended: Ended) -> None:
    """Put a run that was done where the driver's folders are not seen in its place."""
    if ended.packed is not None:
        Path(ended.job.folder).mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=BytesIO(ended.packed)) as archive:
            archive.extractall(ended.job.folder, filter="data")
