"""The study's folder, and the execution of its points: each in a fresh process, and none twice.

::

    STUDY/study.json                  settings of the study: no other study writes here
    STUDY/progress.json, .lock        runs that were asked for, and which is under way; held while a command works here
    STUDY/points/POINT/config.yaml    the point's config
    STUDY/points/POINT/run-1/         the run's folder, as ``fedsim run`` leaves it
    STUDY/points/POINT/run-1.log      the run's output
    STUDY/points/POINT/run-1.json     written last: the run is finished; start and end times
    STUDY/scaling.parquet, scaling.json, plots/
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import __version__
from fedsim.core.errors import ConfigError
from fedsim.records.events import open_locked, write_atomically
from fedsim.scaling.points import Point, Points
from fedsim.scaling.process import RunFailed, mark_of, run_process
from fedsim.scaling.progress import FIRST, LOCK, Job, Progress, words
from fedsim.scaling.records import Run, read_run, usual
from fedsim.simulation.interrupt import InterruptWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from fedsim.configuration.schema import Config

HOLDS = "fedsim scaling study"
"""What ``study.json`` says of its folder."""
_VARIED = (("partition", "clients"), ("sampling", "clients_per_round"), ("ray", "actors"))
_NOT_STUDIED = ("name", "output", "tracking", "cache")


@dataclass(frozen=True)
class Failure:
    """A failed run of a point."""

    point: Point
    repeat: int
    sentence: str


class StudyFolder:
    """The folder of a study, new or continued.

    Raises
    ------
    ConfigError
        If the folder holds anything but this study.
    """

    def __init__(self, path: Path, points: Points) -> None:
        self.path = path
        self.plots = path / "plots"
        self.points = path / "points"
        self._file = path / "study.json"
        self._check(points)

    @contextmanager
    def opened(self, points: Points, jobs: Sequence[Job]) -> Iterator[None]:
        """Create the folder if it does not exist, record what is asked for, and hold the folder against other commands."""
        rounds = next(iter(points.configs.values())).rounds
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._locked())
                Progress(rounds, tuple(jobs)).write(self.path)
                self.points.mkdir(exist_ok=True)
                if not self._file.exists():
                    write_atomically(self._file, json.dumps(_subject(points), indent=2, ensure_ascii=False) + "\n")
            except OSError as error:
                raise ConfigError(
                    f"{self.path} cannot be written ({error.strerror}); choose another --output"
                ) from error
            yield

    def _locked(self) -> FileIO:
        try:
            return open_locked(self.path / LOCK)
        except ConfigError:
            raise ConfigError(
                f"another fedsim scale works on {self.path}; wait for it, stop it, or choose another --output"
            ) from None

    def _check(self, points: Points) -> None:
        # Another command may have made the folder a moment ago: its first files say so.
        if not self.path.exists() or (self.path.is_dir() and all(each.name in FIRST for each in self.path.iterdir())):
            return
        try:
            held = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        if not isinstance(held, dict) or held.get("holds") != HOLDS:
            raise ConfigError(
                f"{self.path} holds files but no scaling study; choose a new or empty folder with --output"
            )
        difference = _difference(held, json.loads(json.dumps(_subject(points))))
        if difference:
            raise ConfigError(
                f"{self.path} holds another study ({difference}), whose figures are not comparable; choose a new or empty "
                "folder with --output"
            )

    def run_folder(self, point: Point, repeat: int) -> Path:
        """Return where a run goes."""
        return self.points / point.name / f"run-{repeat}"

    def config_of(self, point: Point) -> Config:
        """Return the config of a point that an earlier command ran."""
        from fedsim.configuration.schema import read_config

        return read_config(self.points / point.name / "config.yaml")

    def finished(self, point: Point, repeat: int) -> Run | None:
        """Return a run that has been finished, or None."""
        folder = self.run_folder(point, repeat)
        return read_run(point, repeat, folder) if mark_of(folder).exists() else None

    def finished_before(self, asked: Collection[tuple[Point, int]]) -> list[Run]:
        """Return finished runs that earlier commands added to this study, beyond the requested points and repeats."""
        return finished_runs(self.points, asked)


def finished_runs(points: Path, without: Collection[tuple[Point, int]] = ()) -> list[Run]:
    """Return the finished runs in the folder of a study's points, without some points and repeats."""
    found = []
    for mark in sorted(points.glob("*/run-*.json")):
        point, repeat = Point.named(mark.parent.name), int(mark.stem.removeprefix("run-"))
        if (point, repeat) not in without:
            found.append(read_run(point, repeat, mark.with_suffix("")))
    return found


def run_points(
    folder: StudyFolder,
    points: Points,
    jobs: Sequence[Job],
    say: Callable[[str], None],
    show: Callable[[str, str], None],
) -> Iterator[Run | Failure]:
    """Run what is not finished yet; yield every run, including those finished before.

    Parameters
    ----------
    jobs
        Points and numbers of repeats, in the order in which they run.
    say
        Called with lines that stay on screen.
    show
        Called with the current status: the point, and its run's last line of output.

    Raises
    ------
    RunInterrupted
        After SIGINT or SIGTERM; the current run has been stopped and will be repeated from the start.
    """
    progress = Progress(next(iter(points.configs.values())).rounds, tuple(jobs))
    with InterruptWatch() as watch:
        for number, (point, repeat) in enumerate(jobs, start=1):
            what = f"{number}/{len(jobs)}  {words((point, repeat), jobs)}"
            if (run := folder.finished(point, repeat)) is not None:
                say(f"{what}: finished before")
                yield run
                continue
            progress = progress.begun((point, repeat))
            progress.write(folder.path)
            try:
                run_process(points.configs[point], folder.run_folder(point, repeat), watch.check, partial(show, what))
            except RunFailed as error:
                progress = progress.ended((point, repeat), str(error))
                progress.write(folder.path)
                say(f"{what}: failed: {error}")
                yield Failure(point, repeat, str(error))
                continue
            progress = progress.ended((point, repeat))
            progress.write(folder.path)
            run = folder.finished(point, repeat)
            assert run is not None
            say(f"{what}: {_usual(run)} s a {'server step' if run.buffered else 'round'}")
            yield run


def _usual(run: Run) -> str:
    """Return the wall time of a run's rounds, and their simulated time if they have one."""
    rounds = run.rounds[1:] or run.rounds
    return f"{usual([each.times.wall for each in rounds], buffered=run.buffered):.3f}"


def _subject(points: Points) -> dict[str, Any]:
    """Return the settings that all points of a study must share for their figures to be comparable."""
    first = next(iter(points.configs.values()))
    config = first.model_dump(mode="json")
    for section, key in _VARIED:
        config[section].pop(key, None)  # a cohort is out of use in buffered rounds
    for key in _NOT_STUDIED:
        config.pop(key)
    if config["buffer"] is not None:
        config["buffer"] |= {"size": "--cohort", "concurrency": f"{points.at_once:g} times size"}
    return {
        "holds": HOLDS,
        "fedsim": __version__,
        "machine": {"cpus": os.cpu_count(), "system": sys.platform},
        "config": config,
        **({"plugins": first.plugins} if first.plugins else {}),
    }


def _difference(held: Any, wanted: Any, key: str = "") -> str:
    """Describe the first difference of two nested mappings; empty if there is none."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in [*wanted, *(name for name in held if name not in wanted)]:
            inner = f"{key}.{name}" if key else name
            if found := _difference(held.get(name), wanted.get(name), inner):
                return found
        return ""
    shown = key.removeprefix("config.")
    return "" if held == wanted else f"{shown} is {json.dumps(held)} there and {json.dumps(wanted)} here"
