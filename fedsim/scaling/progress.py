"""What a scaling study was asked for and how far it is: ``progress.json``, written as it goes on, and the lock beside it.

Whether a process works on the study is told by the lock alone, as of runs: a killed process leaves its record, but no lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.records.events import write_atomically
from fedsim.scaling.points import Point

LOCK = ".lock"
_NAME = "progress.json"
FIRST = (LOCK, _NAME)
"""What a scaling study writes before its ``study.json``."""
Job = tuple[Point, int]
"""A point, and the number of its run, from 1."""


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes
    ----------
    rounds
        Of each run.
    jobs
        All runs of the last command, in the order in which they run.
    running
        The one under way; None between two, and at the end.
    failures
        Why runs failed.
    """

    rounds: int
    jobs: tuple[Job, ...]
    running: Job | None = None
    failures: tuple[tuple[Job, str], ...] = ()

    def begun(self, job: Job) -> Progress:
        """Return the record with another run under way."""
        return replace(self, running=job)

    def ended(self, job: Job, why: str | None = None) -> Progress:
        """Return the record after the end of a run, which failed if a sentence is given."""
        failures = self.failures if why is None else (*self.failures, (job, why))
        return replace(self, running=None, failures=failures)

    def write(self, folder: Path) -> None:
        """Write the record into the study's folder, atomically."""
        write_atomically(folder / _NAME, json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n")

    def record(self) -> dict[str, Any]:
        """Return the contents of ``progress.json``."""
        return {
            "rounds": self.rounds,
            "runs": [named(job) for job in self.jobs],
            "running": None if self.running is None else named(self.running),
            "failures": [{**named(job), "sentence": sentence} for job, sentence in self.failures],
        }

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Return the record of a study's folder.

        Raises
        ------
        ConfigError
            If there is none, as of earlier versions.
        CheckpointError
            If it is damaged.
        """
        path = folder / _NAME
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            running = held["running"]
            return cls(
                held["rounds"],
                tuple(map(_job, held["runs"])),
                None if running is None else _job(running),
                tuple((_job(entry), str(entry["sentence"])) for entry in held["failures"]),
            )
        except FileNotFoundError:
            raise ConfigError(
                f"{folder} holds a scaling study of an earlier version, which did not record the points that it was asked "
                f"for; fedsim report {folder} shows those that have finished"
            ) from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged; the same fedsim scale command writes it anew") from error


def named(job: Job) -> dict[str, Any]:
    """Return a run as names and values."""
    point, repeat = job
    return {**asdict(point), "repeat": repeat}


def words(job: Job, jobs: Sequence[Job]) -> str:
    """Return a run of a study in words; its number only where points have several."""
    point, repeat = job
    return f"{point}, repeat {repeat}" if any(other > 1 for _, other in jobs) else str(point)


def _job(entry: Mapping[str, Any]) -> Job:
    return Point(entry["clients"], entry["cohort"], entry["actors"]), int(entry["repeat"])
