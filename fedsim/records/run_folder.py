"""Run folder: a run's events, round and client records, configuration and summary.

``metrics.jsonl`` is flushed event by event and outlives a killed process; the Parquet files are written at every
checkpoint. :meth:`RunFolder.truncate` cuts both back to a checkpoint, so a resumed run records each round once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from fedsim import __version__
from fedsim.core.errors import ConfigError, ResourceError
from fedsim.core.messages import ClientReport
from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses
from fedsim.records.columns import CLIENT_COLUMNS, ROUND_COLUMNS, client_row
from fedsim.records.events import EventLog, open_locked, plain, write_atomically, writing
from fedsim.records.folder_check import CREATED, Held, check_usable, what_is_in
from fedsim.records.own_files import remove_run
from fedsim.records.tables import ParquetRows
from fedsim.records.tensorboard import TensorBoard

if TYPE_CHECKING:
    from fedsim.records.sync import Sync
    from fedsim.world.schedule import Visit

__all__ = ["CLIENT_COLUMNS", "ROUND_COLUMNS", "RunFolder", "TensorBoard", "TrackingConfig"]


class TrackingConfig(Schema):
    """What a run records besides ``metrics.jsonl``, ``rounds.parquet`` and ``summary.json``."""

    tensorboard: bool = False
    """Write TensorBoard events to the run folder; needs ``pip install fedsim[tensorboard]``."""
    plots: bool = True
    """At the end of the run, draw plots (metric by round and by traffic, loss, label distribution, layer scores) and write the
    page ``report.html``."""
    page_every_seconds: Annotated[float, Field(ge=1.0, le=1e6)] | None = 30.0
    """Write the page while the run goes on too, at most this often, and let browsers load it again; null: at the end alone.
    Pages take at most 2 % of a run's time."""
    client_records: bool = True
    """Write ``clients.parquet``: one row for each client and round."""

    uses: ClassVar[Uses] = {"page_every_seconds": (Use("plots", (True,), words="it is for runs with plots"),)}


class RunFolder:
    """An open run folder; use :meth:`create` or :meth:`claim`, and close it (or use it in a ``with`` block).

    A write that the system refuses during the run (full disk, removed folder) raises ``ResourceError``.

    Attributes
    ----------
    path, config, metrics, rounds, clients, personal, predictions, labels, summary, report, plots, prompt, checkpoints,
    tensorboard, ray_logs
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
        self.personal = path / "personal.parquet"
        self.predictions = path / "predictions.parquet"
        self.labels = path / "labels.parquet"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.plots = path / "plots"
        self.prompt = path / "prompt"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.ray_logs = path / "ray-logs"
        self._log = EventLog(self.metrics)
        self._begun = True
        try:
            self._rounds = ParquetRows(self.rounds, ROUND_COLUMNS)
            self._clients = ParquetRows(self.clients, CLIENT_COLUMNS)
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

    def round_record(self, record: Mapping[str, Any]) -> None:
        """Add one row to ``rounds.parquet``; see :data:`ROUND_COLUMNS`. Writes no event."""
        with writing(self.rounds):
            self._rounds.append([record])

    def client_records(self, round: int, reports: Sequence[ClientReport], visits: Sequence[Visit] = ()) -> None:
        """Add one row per report to ``clients.parquet``; see :data:`CLIENT_COLUMNS`."""
        with writing(self.clients):
            of = {visit.client: visit for visit in visits}
            self._clients.append([client_row(round, report, of.get(report.client)) for report in reports])

    def flush(self) -> None:
        """Sync all records to disk; call it before writing a checkpoint."""
        with writing(self.rounds):
            self._rounds.flush()
        with writing(self.clients):
            self._clients.flush()
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
            return not isinstance(event.get("round"), int) or event["round"] < round

        for path in (self.summary, self.personal, self.predictions, self.report):
            with writing(path):
                path.unlink(missing_ok=True)
        with writing(self.metrics):
            self._log.keep(stays)
        with writing(self.rounds):
            self._rounds.truncate(round)
        with writing(self.clients):
            self._clients.truncate(round)

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
            for path, part in ((self.metrics, self._log), (self.clients, self._clients), (self.rounds, self._rounds)):
                stack.callback(_close, path, part)


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
