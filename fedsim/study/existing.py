"""Comparing runs that are done: which of them are the same arm with other seeds, and on which data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError, ResourceError
from fedsim.core.plugins import loaded
from fedsim.records.recorded_run import RecordedRun, load_run
from fedsim.records.remote import is_url
from fedsim.study.config import StudyConfig
from fedsim.study.folder import holds_cells, read_json, read_subject, write_json
from fedsim.study.outcome import StudySummary
from fedsim.study.reading import read_figures
from fedsim.study.summary import summarise

_HOLDS = "fedsim comparison"
_SUBJECT = "study.json"
RESULTS = (
    _SUBJECT, "summary.json", "cells.parquet", "pairs.parquet", "cells.csv", "pairs.csv", "study.md", "study.tex", "report.html"
)  # fmt: skip
"""Files that a comparison of runs, and later reports of it, write."""


class _Group:
    """Runs that differ in nothing but their seed, and the data they are on."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity
        self.runs: dict[tuple[str, int], RecordedRun] = {}


def compare_runs(
    places: Sequence[str], note: Callable[[str], None] = lambda text: None
) -> tuple[StudyConfig, StudySummary]:
    """Compare finished runs.

    Runs whose configs differ in nothing but the seed are one arm, named by what their folders are called before the seed; the
    first is the reference. Runs with different keys of ``data`` are on different data sets.

    Parameters
    ----------
    places
        Paths or URLs of run folders.
    note
        Called with a line for each run: the arm, data set and seed that it counts as.

    Raises
    ------
    ConfigError
        If a folder holds no finished run, two runs are the same, or there is only one.
    """
    for place in places:
        if is_url(place):
            continue
        if read_subject(Path(place)) is not None or holds_cells(Path(place)):
            raise ConfigError(
                f"{place} holds a study, not a run; fedsim report {place} shows it, and its runs are in cells"
            )
        if runs_of(Path(place)):
            raise ConfigError(f"{place} holds a comparison of runs, not a run; fedsim report {place} shows it")
    if len(places) < 2:
        raise ConfigError("a comparison of runs needs at least two run folders; give more, or a study file")
    groups: list[_Group] = []
    datasets: dict[str, str] = {}
    for place in places:
        run = load_run(place)
        if run.summary is None:
            raise ConfigError(f"{run.location} holds no finished run; finish it with fedsim run CONFIG --resume")
        config = run.config
        dataset = _dataset(config, run.summary, datasets)
        group = _group(groups, config)
        known = group.runs.setdefault((dataset, config.seed), run)
        if known is not run:
            raise ConfigError(f"{known.location} and {run.location} are the same run, seed {config.seed} on {dataset}")
    names = _names(groups)
    cells = [
        read_figures(run.location, dataset, name, seed)
        for name, group in zip(names, groups, strict=True)
        for (dataset, seed), run in group.runs.items()
    ]
    seeds = {name: tuple(sorted({seed for _, seed in group.runs})) for name, group in zip(names, groups, strict=True)}
    for name, group in zip(names, groups, strict=True):
        for (dataset, seed), run in group.runs.items():
            note(f"{name}, {dataset}, seed {seed}: {run.location}")
    study = StudyConfig(
        name="runs",
        base=str(places[0]),
        arms=dict.fromkeys(names),
        datasets=dict.fromkeys(datasets.values()),
        arm_seeds=seeds,
    )
    return study, summarise(study, cells, [])


def write_subject(folder: Path, places: Sequence[str]) -> None:
    """Write which runs a folder compares, so that its report can be written again.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    runs = [place if is_url(place) else str(Path(place).absolute()) for place in places]
    held = {"holds": _HOLDS, "fedsim": __version__, "runs": runs, "load": [plugin.path for plugin in loaded()]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _SUBJECT, held)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be written ({error.strerror}); choose another --output") from error


def runs_of(folder: Path) -> list[str]:
    """Return the runs that a folder compares; nothing if it holds no comparison."""
    held = read_json(folder / _SUBJECT)
    runs = held.get("runs") if isinstance(held, dict) and held.get("holds") == _HOLDS else None
    return runs if isinstance(runs, list) and all(isinstance(run, str) for run in runs) else []


def command_of_runs(folder: Path) -> str:
    """Return the command that compared the runs of a folder."""
    loads = [word for plugin in read_json(folder / _SUBJECT).get("load", ()) for word in ("--load", plugin)]
    return shlex.join(["fedsim", "compare", *runs_of(folder), "--output", str(folder), *loads])


def holds_results(folder: Path) -> bool:
    """Whether a folder holds results of a study or a comparison, of which nothing says whose they are."""
    return all((folder / name).is_file() for name in ("summary.json", "cells.parquet", "pairs.parquet"))


def refuse_other_files(folder: Path) -> None:
    """Refuse a folder for the results of a comparison that holds anything but those of an earlier one.

    Raises
    ------
    ConfigError
        Naming the folder, and a file in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --output")
    others = sorted({entry.name for entry in folder.iterdir()} - set(RESULTS)) if folder.exists() else []
    if others:
        raise ConfigError(
            f"{folder} holds other files, such as {others[0]}; choose a new or empty folder with --output"
        )


def _dataset(config: Config, summary: dict[str, Any], known: dict[str, str]) -> str:
    """Return a name for the data of a run: its task's, with a number if other data have it already."""
    section = config.model_dump_json(include={"data"})
    if section not in known:
        task = re.sub(r"[^\w.+-]", "_", str(summary.get("task") or "data"))
        taken = sum(name == task or name.startswith(f"{task}-") for name in known.values())
        known[section] = f"{task}-{taken + 1}" if taken else task
    return known[section]


def _group(groups: list[_Group], config: Config) -> _Group:
    identity = {key: value for key, value in config.identity_values.items() if key not in ("seed", "data")}
    identity["rounds"] = config.rounds
    for group in groups:
        if group.identity == identity:
            return group
    groups.append(_Group(identity))
    return groups[-1]


def _names(groups: Sequence[_Group]) -> list[str]:
    """Return a name for each group: what its runs are called before the seed, or its method; numbered where two are alike."""
    names: list[str] = []
    for group in groups:
        runs = list(group.runs.values())
        bare = {_without_seed(run.location, len(runs) == 1) for run in runs}
        shared = bare.pop() if len(bare) == 1 else ""
        name = re.sub(r"[^\w.+-]", "_", shared)[:70].strip(".") or str((runs[0].summary or {}).get("method", "arm"))
        count = sum(each == name or each.startswith(f"{name}-") for each in names)
        names.append(f"{name}-{count + 1}" if name in names else name)
    return names


def _without_seed(location: str, single: bool) -> str:
    """Return a folder's name before the seed, or that of the folder above if it is a seed alone.

    Parameters
    ----------
    single
        Whether it is the arm's only run, whose number may be no seed.
    """
    place = Path(location).absolute()
    before = re.sub(r"[-_.]*(seed)?[-_.]*\d*$", "", place.name)
    return (place.name if before and single else before) or place.parent.name
