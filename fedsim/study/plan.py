"""What ``fedsim compare --dry-run`` prints: the runs, what they cost, and the memory they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.display.report import format_bytes
from fedsim.study.cells import Cell, Study
from fedsim.study.command import study_folder
from fedsim.study.fitting import fitting, run_bytes, stored_bytes
from fedsim.study.folder import StudyFolder
from fedsim.study.inputs import check_inputs
from fedsim.study.running import check_together
from fedsim.study.search import trials


def print_plan(study: Study, output: str | Path | None, at_once: int | None, console: Console) -> dict[str, Any]:
    """Print the plan of a study, and return it; nothing is started or written.

    Raises
    ------
    ConfigError
        After the table, if a run would not find what it reads; see :func:`fedsim.study.inputs.check_inputs`. If runs cannot
        share actors.
    """
    folder = study_folder(study, output)
    searched, reported = trials(study), study.cells()
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.title = f"Study {study.name}"
    for name in ("arm", "runs", "rounds", "client updates"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    if searched:
        _add(table, "search, all arms", searched)
    for arm in study.config.arms:
        _add(table, arm, [cell for cell in reported if cell.arm == arm])
    table.add_section()
    cells = [*searched, *reported]
    _add(table, "all", cells)
    console.print(table)
    check_inputs(study, folder)
    for phase in (searched, reported):
        check_together([cell for cell in phase if not folder.is_finished(cell)], at_once)
    lines = _lines(folder, study, cells, at_once)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    runs = [{"dataset": c.dataset, "arm": c.arm, "seed": c.seed, "trial": c.trial, "folder": c.folder} for c in cells]
    return {"name": study.name, "folder": str(folder.path), "runs": runs, "notes": lines}


def _add(table: Table, name: str, cells: Sequence[Cell]) -> None:
    rounds = sum(cell.config.rounds for cell in cells)
    updates = sum(cell.config.rounds * cell.config.clients_per_step for cell in cells)
    table.add_row(Text(name), f"{len(cells):,}", f"{rounds:,}", f"{updates:,}")


def _lines(folder: StudyFolder, study: Study, cells: Sequence[Cell], at_once: int | None) -> list[str]:
    # What a search will choose is not known yet, so that no reported run of such a study counts as finished.
    known = cells if study.config.search is None else trials(study)
    finished = sum(folder.is_finished(cell) for cell in known)
    said: list[str] = []
    fits = fitting(cells, said.append)
    needed = run_bytes(cells)
    beside = "known once the models are fetched" if needed is None else f"at most {format_bytes(needed)}"
    limit = f"at most {min(at_once or fits, fits, len(cells)):,} at a time, and no more than actors fit"
    return [
        f"data sets: {', '.join(study.config.datasets)}; reference: {study.reference}",
        f"memory of a run: {beside} (an estimate of process, passes and frozen-layer cache), beside "
        f"{format_bytes(stored_bytes(cells))} of weights that all share",
        *said,
        f"runs: {limit}; {finished} of {len(cells)} are finished",
        f"folder: {folder.path}",
    ]
