"""The ``fedsim scale`` command: from its arguments to the study's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedsim.configuration.presets import SCALING, located
from fedsim.core.errors import ConfigError
from fedsim.display.figure import Stamp
from fedsim.display.run_words import run_words
from fedsim.records.events import plain, write_atomically
from fedsim.records.location import is_thrown_away, thrown_away
from fedsim.records.remote import refuse_url
from fedsim.scaling.cost_model import LEAST_POINTS
from fedsim.scaling.points import Points, make_points, parse_numbers, parse_predicted
from fedsim.scaling.prediction import Predictions
from fedsim.scaling.prediction import predict as predicted
from fedsim.scaling.progress import Job
from fedsim.scaling.records import SCALING_COLUMNS, Run
from fedsim.scaling.study import Failure, StudyFolder, run_points
from fedsim.scaling.summary import StudySummary, summarise


def run_study(
    config: Path,
    overrides: Sequence[str],
    *,
    clients: str,
    cohort: str | None,
    actors: str | None,
    rounds: int,
    repeats: int,
    output: Path | None,
    console: Console,
    predict: Sequence[str] = (),
) -> StudySummary:
    """Run a study, or the missing part of it, and write its files.

    Parameters
    ----------
    clients, cohort, actors
        Numbers with commas, as typed.
    output
        The study's folder; ``runs/scaling-NAME`` if not given, NAME that of the config file.
    predict
        Points to predict, as typed.

    Raises
    ------
    FedsimError
        If the points cannot be run as requested, or the folder holds something else; nothing has been run then.
    RunInterrupted
        After SIGINT or SIGTERM. Finished runs are kept, and their results are written.
    """
    refuse_url(output, "--output")
    config = located(config, SCALING)
    if repeats < 1:
        raise ConfigError(f"--repeats {repeats}: every point is run at least once; give 1 or more")
    points = make_points(
        config,
        overrides,
        clients=parse_numbers("--clients", clients),
        cohorts=None if cohort is None else parse_numbers("--cohort", cohort),
        actors=None if actors is None else parse_numbers("--actors", actors),
        rounds=rounds,
        predict=parse_predicted(predict),
    )
    _check_enough(points)
    folder = StudyFolder(study_folder(config, output), points)
    # All points run once before any runs twice: a slow hour of the machine then affects all points alike.
    jobs = [(point, repeat) for repeat in range(1, repeats + 1) for point in points.configs]
    with folder.opened(points, jobs):
        return _run(folder, points, jobs, console)


def study_folder(config: Path, output: Path | None) -> Path:
    """Return where a study goes: ``runs/scaling-NAME`` if nothing else is said, NAME that of the config file."""
    return output or Path("runs") / f"scaling-{config.stem}"


def _run(folder: StudyFolder, points: Points, jobs: Sequence[Job], console: Console) -> StudySummary:
    """Run what is missing of a study, and write what is known, however it ends."""
    runs: list[Run] = folder.finished_before(jobs)
    failures: list[Failure] = []

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    config = next(iter(points.configs.values()))
    times = _count(len(jobs) // len(points.configs), "time")
    say(f"study  {folder.path}: {_count(len(points.configs), 'point')}, {_count(config.rounds, 'round')} each, {times}")
    if is_thrown_away(folder.path):
        say(f"warning: {thrown_away(folder.path)}; give --output FOLDER with a path elsewhere")
    try:
        with console.status("") as status:

            def show(what: str, line: str) -> None:
                status.update(Text(f"{what}  {line}", style="dim", no_wrap=True, overflow="ellipsis"))

            for result in run_points(folder, points, jobs, say, show):
                if isinstance(result, Run):
                    runs.append(result)
                else:
                    failures.append(result)
    finally:
        study = summarise(runs, failures, points.notes, _predictions(folder, points, runs))
        _write(folder, runs, study, say, run_words(config))
    return study


def _check_enough(points: Points) -> None:
    fitted = len(points.configs.keys() - points.predicted.keys())
    if points.predicted and fitted < LEAST_POINTS:
        raise ConfigError(
            f"--predict fits {LEAST_POINTS} costs, and the study has {_count(fitted, 'point')} besides those to predict; "
            "give more numbers to --clients, --cohort or --actors"
        )


def _predictions(folder: StudyFolder, points: Points, runs: Sequence[Run]) -> Predictions:
    """Predict what was asked for; nothing while too few points have been run."""
    fitted = {run.point for run in runs} - points.predicted.keys()
    if not points.predicted or len(fitted) < LEAST_POINTS:
        return Predictions()
    configs = {point: points.configs.get(point) or folder.config_of(point) for point in fitted}
    return predicted(runs, configs, points.predicted)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _write(
    folder: StudyFolder, runs: Sequence[Run], study: StudySummary, say: Callable[[str], None], words: str
) -> None:
    from fedsim.records.tables import ParquetRows
    from fedsim.scaling.picture import write_pictures

    rows = [row for run in runs for row in run.rows()]
    target = folder.path / "scaling.parquet"
    target.unlink(missing_ok=True)
    table = ParquetRows(target, SCALING_COLUMNS)
    table.append(rows)
    table.close()
    text = json.dumps(plain(study.record()), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder.path / "scaling.json", text + "\n")
    write_pictures(study, folder.plots, say, Stamp(words, svg=True))
