"""A recorded run: summary, config, and records as tables."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from fedsim.configuration.schema import Config
from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.records.columns import (
    CLIENT_COLUMNS,
    DEVICE_COLUMNS,
    GENERATION_COLUMNS,
    PERSONAL_COLUMNS,
    PREDICTION_COLUMNS,
    ROUND_COLUMNS,
    VISIT_COLUMNS,
)
from fedsim.records.folder_check import what_is_in
from fedsim.records.labels import read_labels
from fedsim.records.remote import Remote, is_url
from fedsim.records.tables import read_table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from fedsim.display.picture import Picture

_RECORDS = (
    "config.yaml", "summary.json", "metrics.jsonl", "rounds", "clients", "visits", "devices", "personal", "predictions",
    "generations", "labels",
)  # fmt: skip
"""Prefixes of the names of the files that are downloaded from a URL."""


class RecordedRun:
    """A recorded run; created by :func:`load_run`.

    While a run is in progress, its tables hold the rows up to its last checkpoint, and its events everything so far.

    Attributes
    ----------
    location
        Path or URL of the folder.
    """

    def __init__(self, path: Path, location: str, temporary: TemporaryDirectory[str] | None = None) -> None:
        self.location = location
        self._path = path
        self._temporary = temporary
        """Holds files downloaded from a URL for the lifetime of this object."""

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The contents of ``summary.json``; None if the run is not finished."""
        path = self._path / "summary.json"
        try:
            summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(summary, dict):
            raise CheckpointError(
                f"{path} is damaged: it holds a {type(summary).__name__} in place of names and values"
            )
        return summary

    @cached_property
    def config(self) -> Config:
        """The config of the run, with the values decided when it began."""
        path = self._path / "config.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        return Config.from_yaml(text)  # not read as a file, whose name would become that of an unnamed run

    @cached_property
    def rounds(self) -> pa.Table:
        """One row per round, :data:`fedsim.records.columns.ROUND_COLUMNS`: an Arrow table, with ``to_pandas()``."""
        return read_table(self._path / "rounds.parquet", ROUND_COLUMNS)

    @cached_property
    def clients(self) -> pa.Table:
        """One row per client and round, :data:`fedsim.records.columns.CLIENT_COLUMNS`; empty if not recorded."""
        return read_table(self._path / "clients.parquet", CLIENT_COLUMNS)

    @cached_property
    def visits(self) -> pa.Table:
        """One row per visit of a simulated device, :data:`fedsim.records.columns.VISIT_COLUMNS`; empty without devices."""
        return read_table(self._path / "visits.parquet", VISIT_COLUMNS)

    @cached_property
    def devices(self) -> pa.Table:
        """One row per client, :data:`fedsim.records.columns.DEVICE_COLUMNS`; empty without simulated devices."""
        return read_table(self._path / "devices.parquet", DEVICE_COLUMNS)

    @cached_property
    def personal(self) -> pa.Table:
        """One row per client, :data:`fedsim.records.columns.PERSONAL_COLUMNS`; empty before the end."""
        return read_table(self._path / "personal.parquet", PERSONAL_COLUMNS)

    @cached_property
    def predictions(self) -> pa.Table:
        """One row per validation example, :data:`fedsim.records.columns.PREDICTION_COLUMNS`; empty if they were not kept."""
        return read_table(self._path / "predictions.parquet", PREDICTION_COLUMNS)

    @cached_property
    def generations(self) -> pa.Table:
        """One row per response, :data:`fedsim.records.columns.GENERATION_COLUMNS`; empty if the model wrote none."""
        return read_table(self._path / "generations.parquet", GENERATION_COLUMNS)

    @cached_property
    def labels(self) -> tuple[np.ndarray, tuple[str, ...]] | None:
        """Examples of each client (N) and class (C), int64 [N, C], and the classes' names; None if not recorded."""
        return read_labels(self._path / "labels.parquet")

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the events of ``metrics.jsonl``, oldest first; of one kind only, if given."""
        lines = (self._path / "metrics.jsonl").read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["event"])]

    @property
    def prompt(self) -> str:
        """Path or URL of the prompt after the last round, for :func:`fedsim.load_adapter`."""
        return f"{self.location}/prompt/global.safetensors"

    @property
    def best_prompt(self) -> str:
        """Path or URL of the prompt after the best round."""
        return f"{self.location}/prompt/best.safetensors"

    def export(self, to: Literal["peft"] = "peft", output: str | Path | None = None, client: int | None = None) -> Path:
        """Export what the run trained as an adapter for another library, with its model card; return the folder.

        Parameters
        ----------
        to
            ``peft``: an adapter that ``peft.PeftModel.from_pretrained`` loads.
        output
            New or empty folder; if not given, ``RUN/prompt/peft``. Needed for a run at a URL.
        client
            Take the layers that were not exchanged from this client.

        Raises
        ------
        ConfigError, ModelError
            If the format is unknown, no adapter gives the same scores, or the output cannot be written.

        Examples
        --------
        >>> fedsim.load_run("runs/quickstart").export(output="adapter")     # doctest: +SKIP
        """
        from fedsim.prompts.peft_adapter import default_output, export_peft
        from fedsim.prompts.prompt_file import local_prompt

        if to != "peft":
            raise ConfigError(f"there is no export to {to!r}; to must be 'peft'")
        if output is None and is_url(self.location):
            raise ConfigError(f"{self.location} is a URL; give a local folder for the adapter, output=FOLDER")
        with local_prompt(self.location) as path:
            return export_peft(path, default_output(path) if output is None else output, client)

    def plot(self, what: str = "metric") -> Picture:
        """Return a plot of ``metric``, ``loss``, ``bytes`` or ``generated`` (responses) by round, which a notebook displays.

        Raises
        ------
        ConfigError
            If there is no such plot, or no records to draw.
        """
        from fedsim.display.picture import picture_of_rounds

        name = None if self.summary is None else self.summary.get("metric_name")
        return picture_of_rounds(self.rounds, what, name or "metric")

    def __repr__(self) -> str:
        if self.summary is None:
            return f"<run {self.location}, not finished, {max(0, self.rounds.num_rows - 1)} rounds on record>"
        metric = self.summary.get("global_metric")
        value = "-" if metric is None else f"{metric:.4g}"
        return f"<run {self.location}, {self.summary.get('rounds')} rounds, {self.summary.get('metric_name')} {value}>"

    def _repr_html_(self) -> str:
        from fedsim.display.notebook import html_of
        from fedsim.display.report import final_table

        return html_of(final_table(self.summary)) if self.summary is not None else html_of(repr(self))


def load_run(place: str | Path) -> RecordedRun:
    """Read the records of a run, finished or in progress.

    Parameters
    ----------
    place
        Path or URL of its folder.

    Raises
    ------
    ConfigError
        If the folder holds no run.

    Examples
    --------
    >>> run = load_run("runs/quickstart")                               # doctest: +SKIP
    >>> run.summary["best_global_metric"], run.rounds.to_pandas()       # doctest: +SKIP
    """
    if not is_url(place):
        path, temporary = Path(place), None
        held, location = what_is_in(path), str(path)
    else:
        remote = Remote(str(place))
        held, location = remote.holds(), remote.url
        temporary = TemporaryDirectory(prefix="fedsim-run-")
        path = Path(temporary.name)
        for name, size in remote.files().items() if held == "run" else ():
            if "/" not in name and name.startswith(_RECORDS):
                remote.download(name, path / name, size)
    if held != "run":
        raise ConfigError(f"{location} holds no fedsim run; give the folder of a run, such as runs/quickstart")
    return RecordedRun(path, location, temporary)
