"""What ``fedsim compare`` does with its arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fedsim.configuration.presets import ENDINGS, STUDIES, located
from fedsim.core.errors import ConfigError, shown
from fedsim.display.next_steps import after_compare, next_steps, typed
from fedsim.records.remote import is_url, refuse_url
from fedsim.study.cells import read_study
from fedsim.study.command import compare as run_study
from fedsim.study.command import expectations, study_folder, write_report
from fedsim.study.plan import print_plan
from fedsim.study.search import check_search
from fedsim.study.table import StudyTable


def compare(
    words: Sequence[str],
    output: Path | None,
    at_once: int | None,
    dry_run: bool,
    checked: bool,
    console: Console,
) -> tuple[bool, dict[str, Any]]:
    """Compare what the words name, a study file or runs; return whether nothing failed, and what was found.

    Raises
    ------
    ConfigError
        If they name neither.
    """
    first = words[0]
    if is_url(first) or Path(first).is_dir():
        _refuse_for_runs(at_once, dry_run, checked)
        from fedsim.study.existing import compare_runs, refuse_other_files, write_subject

        refuse_url(output, "--output")
        if output is not None:
            refuse_other_files(output)
        config, found = compare_runs(words, lambda text: console.print(Text(text, style="dim"), soft_wrap=True))
        if output is not None:
            write_subject(output, words)
            commands = [shlex.join(["fedsim", "compare", *words, "--output", str(output)])]
            write_report(output, config, found, lambda text: console.print(Text(text), soft_wrap=True), commands)
        console.print(StudyTable(found))
        after = {typed("report", output, "--to", "md"): "its tables, for a text"} if output is not None else {}
        if output is None and not (page := Path("runs", "comparison")).exists():
            after[typed("compare", *words, "--output", page)] = "the same as a page"
        if after:
            console.print(next_steps(after), soft_wrap=True)
        return True, {**found.record(), "expectations": []}
    if located(first, STUDIES).suffix not in ENDINGS:
        raise ConfigError(
            f"{shown(first)} is neither a study file, which ends in .yaml, nor a preset ('fedsim presets' lists them), nor the "
            "folder of a run"
        )
    study = read_study(first, words[1:])
    check_search(study)
    if dry_run and checked:
        raise ConfigError("--check has no use with --dry-run, which makes no runs to check")
    options = {"--output": output, "--at-once": at_once}
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    command = typed("compare", *words, *given)
    if dry_run:
        plan = print_plan(study, output, at_once, console)
        console.print(next_steps({command: "run it"}), soft_wrap=True)
        return True, plan
    if checked and not study.config.expect:
        raise ConfigError(f"{first}: --check needs the key expect, with a band for each data set and arm to check")
    summary = run_study(first, words[1:], output=output, at_once=at_once, console=console)
    console.print(StudyTable(summary))
    fine = not summary.failed
    checks = expectations(study, summary) if checked else ()
    for expectation in checks:
        console.print(Text(f"{'ok' if expectation.ok else 'FAILED'}  {expectation.sentence}"), soft_wrap=True)
        fine = fine and expectation.ok
    unchecked = bool(study.config.expect) and not checked
    folder = study_folder(study, output).path
    steps = after_compare(command, folder, failed=len(summary.failed), unchecked=unchecked)
    console.print(steps, soft_wrap=True)
    return fine, {**summary.record(), "expectations": [{"ok": each.ok, "sentence": each.sentence} for each in checks]}


def _refuse_for_runs(at_once: int | None, dry_run: bool, checked: bool) -> None:
    given = {"--at-once": at_once is not None, "--dry-run": dry_run, "--check": checked}
    for option, there in given.items():
        if there:
            raise ConfigError(f"{option} has no use with runs that are done; it is for a study file")
