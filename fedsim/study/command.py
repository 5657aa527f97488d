"""The ``fedsim compare`` command: from a study file to runs, statistics and a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fedsim.core.errors import ConfigError, ResourceError
from fedsim.records.events import plain, write_atomically
from fedsim.records.location import is_thrown_away, thrown_away
from fedsim.records.remote import refuse_url
from fedsim.simulation.interrupt import InterruptWatch, RunInterrupted
from fedsim.study.cells import Cell, Study, read_study
from fedsim.study.checks import text_metric_of
from fedsim.study.config import StudyConfig
from fedsim.study.crew import Crew
from fedsim.study.expect import Expectation, check
from fedsim.study.exports import export
from fedsim.study.figures import FailedCell
from fedsim.study.folder import StudyFolder, command_of, subject, write_json
from fedsim.study.inputs import check_inputs
from fedsim.study.loading import load_search, summary_of
from fedsim.study.outcome import StudySummary
from fedsim.study.progress import StudyProgress
from fedsim.study.running import run_cells
from fedsim.study.search import Choice, check_search, choose, metric_of, trials

NOT_RUN = "it has not run"
OUTDATED = "its run is of an earlier state of the study; compare again"
UNSETTLED = "the search has not chosen its settings yet; compare again"


def compare(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    at_once: int | None = None,
    console: Console | None = None,
) -> StudySummary:
    """Run a study, or the part of it that is missing, and write its results.

    Parameters
    ----------
    path
        The study file; its keys are those of :class:`fedsim.study.config.StudyConfig`.
    overrides
        Dotted overrides of every cell's config, such as ``rounds=5``.
    output
        The study's folder; ``runs/study-NAME`` if not given.
    at_once
        Runs at a time: each on one actor, or, with 1, one after another on all actors. If not given, as many as fit.
    console
        Console to write to.

    Returns
    -------
    StudySummary
        Also if cells have failed; it names them.

    Raises
    ------
    FedsimError
        On a mistake in the study file or a config; nothing has been run then. If no actor fits.
    RunInterrupted
        After SIGINT or SIGTERM; the same call continues the study.
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"at_once is {at_once}, but must be at least 1")
    study = read_study(path, overrides)
    check_search(study)
    folder = study_folder(study, output)
    check_inputs(study, folder)
    console = console or _screen()
    most = max(len(trials(study)), len(study.cells()))
    opened = folder.opened(study, lambda: _earlier(folder, study))
    with opened, InterruptWatch() as watch, Crew(folder, at_once, most, watch) as crew:
        if folder.without_subject:
            _say(console, f"warning: {folder.path} holds runs without the study's study.json, which is written anew")
        if is_thrown_away(folder.path):
            _say(console, f"warning: {thrown_away(folder.path)}; give --output FOLDER with a path elsewhere")
        try:
            choices, vain = _searched(crew, study, console)
            cells = study.cells({(choice.dataset, choice.arm): choice.values for choice in choices})
            unsettled = {cell: vain[cell.dataset, cell.arm] for cell in cells if (cell.dataset, cell.arm) in vain}
            if choices:
                folder.write("failures.json", [vars(cell) for cell in _outdated(folder, cells)])
            failures = _done(crew, [cell for cell in cells if cell not in unsettled], console) | unsettled
        except RunInterrupted as error:
            error.kept = f"what is done is kept in {folder.path}; the same command continues"
            raise
        failed = [
            FailedCell(c.dataset, c.arm, c.seed, failures.get(c, NOT_RUN))
            for c in cells
            if c in unsettled or not folder.is_finished(c)
        ]
        folder.write("failures.json", [vars(cell) for cell in failed])
        config = study.config.model_copy(update={"name": study.name})
        summary = summary_of(config, folder.path, failed)
        write_report(
            folder.path, config, summary, lambda text: _say(console, text), [command_of(subject(study), folder.path)]
        )
    return summary


def study_folder(study: Study, output: str | Path | None) -> StudyFolder:
    """Return a study's folder.

    Raises
    ------
    ConfigError
        If it holds something else, such as another study, or is a URL.
    """
    path = None if output is None else Path(output)
    refuse_url(path, "--output")
    return StudyFolder(path or Path("runs") / f"study-{study.name}", study.name)


def expectations(study: Study, summary: StudySummary) -> tuple[Expectation, ...]:
    """Return how the study's means lie to its expected bands.

    Raises
    ------
    ConfigError
        If the study expects nothing.
    """
    if not study.config.expect:
        raise ConfigError(f"{study.path}: --check needs the key expect, with a band for each data set and arm to check")
    return check(summary, study.config.expect)


def write_report(
    path: Path, config: StudyConfig, summary: StudySummary, note: Callable[[str], None], commands: Sequence[str] = ()
) -> None:
    """Write what a study found into a folder: ``summary.json``, ``cells.parquet``, ``pairs.parquet`` and ``report.html``.

    Parameters
    ----------
    note
        Called with messages for the user: a page that cannot be drawn loses no figures.
    commands
        Commands that ran the study.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    from fedsim.display.figure import told
    from fedsim.display.page.study_page import study_page

    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "summary.json", plain(summary.record()))
    except OSError as error:
        raise ResourceError(f"{path} cannot be written ({error.strerror}); choose another --output") from error
    export(summary, "parquet", path)
    page = path / "report.html"
    try:
        with told(note, page):
            search = load_search(config, path)
            text = study_page(summary, summary.cells, config, folder=str(path), search=search, commands=tuple(commands))
            write_atomically(page, text)
    except Exception as error:  # matplotlib's errors share no base class
        note(f"warning: {page} is left out: {type(error).__name__}: {error}")
        return
    note(f"report: {page}")


# -- running -----------------------------------------------------------------------------------------------------------


def _earlier(folder: StudyFolder, study: Study) -> list[FailedCell]:
    """Return the cells whose runs may be of an earlier state of the study: with a search all, until it has chosen."""
    if study.config.search is None:
        return _outdated(folder, study.cells())
    folder.refuse_other_trials(trials(study))
    folder.write("search.json", [])
    return [FailedCell(c.dataset, c.arm, c.seed, UNSETTLED) for c in study.cells() if folder.has_ended(c)]


def _outdated(folder: StudyFolder, cells: Sequence[Cell]) -> list[FailedCell]:
    """Return the cells that hold a run, but not all that the study asks for now."""
    earlier = (cell for cell in cells if folder.has_ended(cell) and not folder.is_finished(cell))
    return [FailedCell(c.dataset, c.arm, c.seed, folder.why_again(c) or OUTDATED) for c in earlier]


def _searched(crew: Crew, study: Study, console: Console) -> tuple[list[Choice], dict[tuple[str, str], str]]:
    """Do what is missing of the search; return what it has chosen, and by data set and arm why it has chosen nothing."""
    cells = trials(study)
    if not cells:
        return [], {}
    folder = crew.folder
    failures = _done(crew, cells, console, "search")
    search = study.config.search
    assert search is not None
    metrics = {c: _metric(folder.run(c), metric_of(search, c.arm)) for c in cells if c not in failures}
    choices = choose(study, metrics)
    folder.write("search.json", [choice.record() for choice in choices])
    vain = {}
    for choice in choices:
        values = ", ".join(f"{key}={value}" for key, value in choice.values.items())
        if not values:
            vain[choice.dataset, choice.arm] = _vain(choice, failures, metric_of(search, choice.arm))
        by = text_metric_of(search, choice.arm)
        why = f", by {by} of written responses" if by is not None and values else ""
        _say(console, f"search: {choice.arm} on {choice.dataset} takes {values or 'nothing'}{why}")
    return choices, vain


def _vain(choice: Choice, failures: Mapping[Cell, str], metric: str) -> str:
    """Return why a search has chosen nothing."""
    of_arm = (said for cell, said in failures.items() if (cell.dataset, cell.arm) == (choice.dataset, choice.arm))
    why = next(of_arm, f"its runs have no {metric}")
    return f"the search chose nothing, since none of {len(choice.trials)} combinations gave a metric: {why}"


def _done(crew: Crew, cells: Sequence[Cell], console: Console, what: str = "") -> dict[Cell, str]:
    """Do what is missing of some cells; return why some failed."""
    failures: dict[Cell, str] = {}
    said: set[str] = set()
    with StudyProgress(cells, console, what) as progress:
        for end in run_cells(crew, cells, progress):
            for note in end.notes:
                if note.startswith("warning") and note not in said:
                    said.add(note)
                    progress.note(f"{end.cell}: {note}")
            if end.sentence is not None:
                failures[end.cell] = end.sentence
                progress.ended(end.cell, f"failed: {end.sentence}")
            elif end.before:
                progress.ended(end.cell, "finished before")
            else:
                progress.ended(end.cell, _result(crew.folder.run(end.cell)))
    return failures


def _summary(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return values


def _metric(run: Path, name: str) -> float:
    value: Any = _summary(run)
    for part in name.split("."):
        value = (value or {}).get(part)
    return math.nan if value is None else float(value)


def _result(run: Path) -> str:
    from fedsim.display.report import format_metric, format_seconds

    values = _summary(run)
    metric, seconds = format_metric(values.get("global_metric")), format_seconds(values.get("seconds_total"))
    return f"{values['metric_name']} {metric} ({seconds})"


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _screen() -> Console:
    from fedsim.display.screen import RunConsole

    return RunConsole()
