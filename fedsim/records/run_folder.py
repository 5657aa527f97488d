"""Run folder: a run's events, round and client records, configuration and summary.

``metrics.jsonl`` is flushed event by event and outlives a killed process; the Parquet files are written at every
checkpoint. :meth:`RunFolder.truncate` cuts both back to a checkpoint, so a resumed run records each round once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedsim import __version__
from fedsim.core.errors import ConfigError, ResourceError
from fedsim.core.messages import ClientReport
from fedsim.records.columns import (
    CLIENT_COLUMNS,
    GENERATION_COLUMNS,
    ROUND_COLUMNS,
    VISIT_COLUMNS,
    client_row,
    visit_row,
)
from fedsim.records.events import EventLog, open_locked, plain, write_atomically, writing
from fedsim.records.folder_check import CREATED, Held, check_usable, what_is_in
from fedsim.records.own_files import remove_run
from fedsim.records.tables import ParquetRows, read_table

if TYPE_CHECKING:
    from fedsim.records.sync import Sync
    from fedsim.world.devices import Devices
    from fedsim.world.schedule import Visit

__all__ = ["CLIENT_COLUMNS", "ROUND_COLUMNS", "RunFolder"]


class RunFolder:
    """An open run folder; use :meth:`create` or :meth:`claim`, and close it (or use it in a ``with`` block).

    A write that the system refuses during the run (full disk, removed folder) raises ``ResourceError``.

    Attributes
    ----------
    path, config, metrics, rounds, clients, visits, devices, personal, predictions, generations, labels, summary, report, plots,
    prompt, checkpoints, ray_logs
        Paths of the folder and of its contents. Subfolders are created by the code that writes to them.
    location
        The folder's name in messages: its path, or the URL that it is synced to.
    """

    def __init__(self, path: Path, mirror: Sync | None = None) -> None:
        self.path = path
        self.location = str(path) if mirror is None else mirror.url
        self._mirror = mirror
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.rounds = path / "rounds.parquet"
        self.clients = path / "clients.parquet"
        self.visits = path / "visits.parquet"
        self.devices = path / "devices.parquet"
        self.personal = path / "personal.parquet"
        self.predictions = path / "predictions.parquet"
        self.generations = path / "generations.parquet"
        self.labels = path / "labels.parquet"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.plots = path / "plots"
        self.prompt = path / "prompt"
        self.checkpoints = path / "checkpoints"
        self.ray_logs = path / "ray-logs"
        self._log = EventLog(self.metrics)
        self._begun = True
        try:
            self._rounds = ParquetRows(self.rounds, ROUND_COLUMNS)
            self._clients = ParquetRows(self.clients, CLIENT_COLUMNS)
            self._visits = ParquetRows(self.visits, VISIT_COLUMNS)
            self._generations = ParquetRows(self.generations, GENERATION_COLUMNS)
        except BaseException:
            self._log.close()
            raise

    @classmethod
    def create(
        cls, path: Path, *, resume: bool = False, overwrite: bool = False, mirror: Sync | None = None
    ) -> RunFolder:
        """Create the folder of a new run, or open that of a run to resume: :meth:`claim`, then :meth:`begin`."""
        with ExitStack() as stack:
            folder = stack.enter_context(cls.claim(path, resume=resume, overwrite=overwrite, mirror=mirror))
            folder.begin()
            stack.pop_all()
        return folder

    @classmethod
    def claim(
        cls, path: Path, *, resume: bool = False, overwrite: bool = False, mirror: Sync | None = None
    ) -> RunFolder:
        """Create or open a folder and lock it against other runs; nothing is written until the run begins.

        Parameters
        ----------
        path
            The run folder. A folder that holds anything but a fedsim run is refused and left untouched.
        resume
            Continue the run in ``path``.
        overwrite
            Remove the records of the run in ``path`` (other files stay) and start over.
        mirror
            Sync of ``path`` to a URL.

        Raises
        ------
        ConfigError
            If the folder cannot be used as requested, or another process writes to it.
        CheckpointError
            If ``resume`` finds records that cannot be read.
        """
        path = Path(path)
        held = cls.check(path, resume=resume, overwrite=overwrite)
        with _choosing(path):
            path.mkdir(parents=True, exist_ok=True)
            if held == "run" and overwrite:
                with closing(open_locked(path / "metrics.jsonl")) as log:  # refuses a run that is still running
                    remove_run(path)
                    log.truncate(0)
            folder = cls(path, mirror)
        folder._begun = resume
        return folder

    def begin(self) -> None:
        """Begin a new run in a claimed folder; does nothing for a resumed run.

        Raises
        ------
        ConfigError
            If it cannot be written.
        """
        if self._begun:
            return
        if what_is_in(self.path) == "run":  # another run came and went between the check and the lock
            check_usable("run", str(self.path))
        with _choosing(self.path):
            remove_run(self.path)  # leftovers of a refused start
            self._log.keep(lambda event: False)
            self._log.write(CREATED, {"fedsim": __version__})
        self._begun = True

    @staticmethod
    def check(path: Path, *, resume: bool = False, overwrite: bool = False) -> Held:
        """Return what ``path`` holds, without changing it, if :meth:`create` can use it as requested.

        Raises
        ------
        ConfigError
            If it cannot.
        """
        held = what_is_in(path)
        check_usable(held, str(path), resume=resume, overwrite=overwrite)
        return held

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ResourceError:
            if error is None:  # otherwise report the error that ends the run, not this one
                raise

    @property
    def finished(self) -> bool:
        """Whether the run has written its summary."""
        return self.summary.exists()

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append one event to ``metrics.jsonl`` and write it at once.

        Parameters
        ----------
        kind
            Kind of event; the field ``event`` of the line, beside ``time`` (ISO 8601, UTC) and ``seconds`` (since
            the start of the run, without the pauses before a resume).
        **fields
            Anything that JSON can hold, NumPy values, paths; non-finite numbers become null.

        Raises
        ------
        ValueError
            If a field is named ``event``, ``time`` or ``seconds``.
        TypeError
            If a value cannot be written as JSON.
        """
        with writing(self.metrics):
            self._log.write(kind, fields)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind so far, oldest first."""
        with writing(self.metrics):
            return [event for event in self._log.read() if event["event"] == kind]

    def recorded_rounds(self) -> list[dict[str, Any]]:
        """Return the rows of ``rounds.parquet`` that are on disk; see :meth:`flush`."""
        with writing(self.rounds):
            rows: list[dict[str, Any]] = read_table(self.rounds, ROUND_COLUMNS).to_pylist()
        return rows

    def round_record(self, record: Mapping[str, Any]) -> None:
        """Add one row to ``rounds.parquet``; see :data:`ROUND_COLUMNS`. Writes no event."""
        with writing(self.rounds):
            self._rounds.append([record])

    def client_records(self, round: int, reports: Sequence[ClientReport], visits: Sequence[Visit] = ()) -> None:
        """Add one row per report to ``clients.parquet``; see :data:`CLIENT_COLUMNS`."""
        with writing(self.clients):
            of = {visit.client: visit for visit in visits}
            self._clients.append([client_row(round, report, of.get(report.client)) for report in reports])

    def visit_records(self, round: int, visits: Sequence[Visit], devices: Devices, failed: Collection[int]) -> None:
        """Add one row per visit to ``visits.parquet``; ``failed`` names the clients whose training failed."""
        with writing(self.visits):
            self._visits.append([visit_row(round, visit, devices, failed) for visit in visits])

    def generation_records(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to ``generations.parquet``; see :data:`fedsim.records.columns.GENERATION_COLUMNS`."""
        with writing(self.generations):
            self._generations.append(rows)

    def recorded_generations(self) -> list[dict[str, Any]]:
        """Return the rows of ``generations.parquet`` so far."""
        with writing(self.generations):
            self._generations.flush()
            rows: list[dict[str, Any]] = read_table(self.generations, GENERATION_COLUMNS).to_pylist()
        return rows

    def flush(self) -> None:
        """Sync all records to disk; call it before writing a checkpoint."""
        with writing(self.rounds):
            self._rounds.flush()
        with writing(self.clients):
            self._clients.flush()
        with writing(self.visits):
            self._visits.flush()
        with writing(self.generations):
            self._generations.flush()
        with writing(self.metrics):
            self._log.sync()

    def checkpointed(self) -> None:
        """Start a sync to the run's URL, if it has one; call it after writing a checkpoint."""
        if self._mirror is not None:
            self._mirror.update()

    def truncate(self, round: int) -> None:
        """Drop the events and rows of rounds from ``round`` on, and what is written at the end.

        Events of earlier rounds and events without a round stay; the clock continues from the last of them. The summary and
        the tables and the page beside it are always dropped, because a run that continues is not finished.
        """

        def stays(event: dict[str, Any]) -> bool:
            later = isinstance(event.get("round"), int) and event["round"] >= round
            return not later and not event.get("only_at_end")

        for path in (self.summary, self.personal, self.predictions, self.report):
            with writing(path):
                path.unlink(missing_ok=True)
        with writing(self.metrics):
            self._log.keep(stays)
        with writing(self.rounds):
            self._rounds.truncate(round)
        with writing(self.clients):
            self._clients.truncate(round)
        with writing(self.visits):
            self._visits.truncate(round)
        with writing(self.generations):
            self._generations.truncate(round, also="only_at_end")

    def forget_responses(self) -> None:
        """Drop what the model has written, and the figures of it in events and rounds."""
        with writing(self.generations):
            self._generations.truncate(0)
        with writing(self.rounds):
            self._rounds.clear([name for name in ROUND_COLUMNS if name.startswith("generated_")])
        with writing(self.metrics):
            self._log.keep(lambda event: event["event"] != "generated")

    def write_config(self, text: str) -> None:
        """Write ``config.yaml``, atomically."""
        write_atomically(self.config, text)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, atomically, keys in the order given; non-finite numbers become null."""
        write_atomically(self.summary, json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """Write pending records, each file as far as possible, and close. A closed folder accepts no more records."""
        if self._log.closed:
            return
        with writing(self.metrics):
            if not self._begun and not self._log.read():
                self._log.discard()
                return
        with ExitStack() as stack:
            stack.callback(_close, self.metrics, self._log)
            for table in (self._clients, self._visits, self._generations, self._rounds):
                stack.callback(_close, table.path, table)


@contextmanager
def _choosing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); choose another folder with output=FOLDER"
        ) from error


def _close(path: Path, part: EventLog | ParquetRows) -> None:
    with writing(path):
        part.close()
