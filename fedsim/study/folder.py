"""The folder of a study, and which of its cells are finished.

::

    STUDY/study.json                          the study: other files than its own are refused
    STUDY/search/DATASET/ARM/trial-…/         runs of the search
    STUDY/search.json                         what the search has chosen, and from which figures
    STUDY/cells/DATASET/ARM/seed-…/           runs that are reported, each as ``fedsim run`` leaves it
    STUDY/failures.json                       cells that failed, each with its sentence
    STUDY/summary.json, cells.parquet, report.html
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim import __version__
from fedsim.configuration.schema import read_config
from fedsim.core.errors import ConfigError, FedsimError, shown
from fedsim.core.plugins import loaded
from fedsim.records.checkpoint import newest_round
from fedsim.records.events import open_locked, write_atomically
from fedsim.records.folder_check import what_is_in
from fedsim.records.resumed_responses import other_rounds
from fedsim.records.resuming import as_recorded, finished, is_of_another_config, lost
from fedsim.study.cells import Cell, Study
from fedsim.study.config import StudyConfig
from fedsim.study.figures import FailedCell

_HOLDS = "fedsim study"
_LOCK = ".lock"
_FIRST = (_LOCK, "failures.json", "search.json")
"""What a study writes before its ``study.json``."""


class StudyFolder:
    """The folder of a study, new or continued.

    Parameters
    ----------
    name
        Name of the study that the folder must hold if it holds one.

    Raises
    ------
    ConfigError
        If the folder holds anything but a study, or another study.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        held = read_subject(path)
        # Another command may have made the folder a moment ago: its first files say so.
        others = path.is_dir() and any(entry.name not in _FIRST for entry in path.iterdir())
        self.without_subject = held is None and others
        """Whether ``study.json`` is gone, or damaged, beside runs of a study."""
        if self.without_subject and not holds_cells(path):
            raise ConfigError(f"{path} holds files but no study; choose a new or empty folder with --output")
        if held is not None and name is not None and held.get("name", name) != name:
            raise ConfigError(
                f"{path} holds the study {shown(held['name'])}, not {shown(name)}; choose another folder with --output (or, "
                f"if it is the same study, say name: {held['name']} in its file)"
            )
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; choose a folder with --output")

    @contextmanager
    def opened(self, study: Study, earlier: Callable[[], Sequence[FailedCell]] = tuple) -> Iterator[None]:
        """Create the folder if it does not exist, and hold it against other writers.

        Parameters
        ----------
        earlier
            Returns the cells whose runs may be of an earlier state of the study, so that no report shows them as the study's
            should the command be stopped; if it raises an error, nothing is changed.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(open_locked(self.path / _LOCK))
                self.write("failures.json", [vars(cell) for cell in earlier()])
                write_json(self.path / "study.json", subject(study))
            except OSError as error:
                raise ConfigError(
                    f"{self.path} cannot be written ({error.strerror}); choose another --output"
                ) from error
            yield

    def run(self, cell: Cell) -> Path:
        """Return the folder of a cell's run."""
        return self.path.absolute() / cell.folder

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell has been done, with the same config."""
        path = self.run(cell)
        summary = finished(as_recorded(cell.config, path), path) if path.exists() else None
        return summary is not None and other_rounds(cell.config, path, summary["rounds"]) is None

    def has_ended(self, cell: Cell) -> bool:
        """Whether a cell's folder holds a run that has ended, maybe one of an earlier state of the study."""
        return (self.run(cell) / "summary.json").exists()

    def why_again(self, cell: Cell) -> str | None:
        """Return why a run that has ended is not taken as it is, if a file of its is the reason."""
        gone, at = lost(self.run(cell)), newest_round(self.run(cell) / "checkpoints")
        if gone is not None:
            how = "it starts over" if at is None else f"it goes on from its checkpoint after round {at}"
            return f"{gone} of its run is gone or damaged: {how}"
        return "its checkpoints are gone: it starts over" if at is None and self.has_ended(cell) else None

    def why_not(self, cell: Cell) -> str | None:
        """Return why a cell cannot be run: its place is taken by a run of another config, which has no checkpoint to say so, or
        by a finished one whose model wrote after other rounds.
        """
        path = self.run(cell)
        if is_of_another_config(cell.config, path):
            return f"{path} is a run of another configuration, without checkpoints; delete it and compare again"
        summary = finished(as_recorded(cell.config, path), path)
        why = None if summary is None else other_rounds(cell.config, path, summary["rounds"])
        return (
            None
            if why is None
            else f"{path}: {why}; leave evaluation.generate.every as it was, or delete the run and compare again"
        )

    def refuse_other_trials(self, cells: Sequence[Cell]) -> None:
        """Refuse to search where another search has begun: its runs would count as failed ones of this.

        Raises
        ------
        ConfigError
            Naming the first of its runs.
        """
        for cell in cells:
            path = self.run(cell)
            if what_is_in(path) != "run":
                continue
            try:
                before = read_config(path / "config.yaml")
            except FedsimError:
                continue
            if before.identity != as_recorded(cell.config, path).identity or before.rounds > cell.config.rounds:
                raise ConfigError(
                    f"{path} is a run of another search than the study's; delete {self.path / 'search'} to search anew, or "
                    "choose another folder with --output"
                )

    def write(self, name: str, values: Mapping[str, Any] | list[Any]) -> None:
        """Write a file of JSON, atomically."""
        write_json(self.path / name, values)

    def read(self, name: str) -> Any:
        """Read a file of JSON; None if there is none.

        Raises
        ------
        ConfigError
            If it is damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except OSError:
            return None
        except ValueError:
            raise damaged(self.path / name) from None


def holds_cells(path: Path) -> bool:
    """Whether a folder holds runs of a study, or of its search."""
    patterns = ("cells/*/*/seed-*/metrics.jsonl", "search/*/*/trial-*/metrics.jsonl")
    return any(next(path.glob(pattern), None) is not None for pattern in patterns)


def read_json(path: Path) -> Any:
    """Read a file of JSON; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_subject(path: Path) -> dict[str, Any] | None:
    """Return what ``study.json`` holds; None if the folder holds no study."""
    held = read_json(path / "study.json")
    return held if isinstance(held, dict) and held.get("holds") == _HOLDS else None


def subject_config(held: Mapping[str, Any], path: Path) -> StudyConfig:
    """Return the study that ``study.json`` holds, with its name.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    try:
        command_of(held, path)
        return StudyConfig.model_validate(held["study"] | {"name": held["name"]})
    except (KeyError, TypeError, ValidationError):
        raise damaged(path / "study.json") from None


def command_of(held: Mapping[str, Any], path: Path) -> str:
    """Return the command that ran the study that ``study.json`` holds."""
    loads = [word for plugin in held.get("load", ()) for word in ("--load", plugin)]
    return shlex.join(["fedsim", "compare", held["file"], *held["overrides"], "--output", str(path), *loads])


def damaged(path: Path) -> ConfigError:
    """Return the error that a file of a study's own is damaged."""
    return ConfigError(f"{path} is damaged; fedsim compare STUDY.yaml --output {path.parent} writes it anew")


def subject(study: Study) -> dict[str, Any]:
    """Return what ``study.json`` holds of a study."""
    return {
        "holds": _HOLDS,
        "fedsim": __version__,
        "name": study.name,
        "file": str(study.path),
        "overrides": list(study.overrides),
        "load": [plugin.path for plugin in loaded()],
        "study": study.config.model_dump(mode="json"),
    }


def write_json(path: Path, values: Mapping[str, Any] | list[Any]) -> None:
    """Write a file of JSON, atomically."""
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
