"""``fedsim scale`` and ``fedsim compare``: studies of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli import completion
from fedsim.cli.machine import Outcome
from fedsim.cli.options import ConfigPath, Load, Overrides
from fedsim.simulation.interrupt import RunInterrupted


def scale(
    config: ConfigPath,
    clients: Annotated[str, typer.Option(help="Registered clients, e.g. 10,100,1000.", show_default=False)],
    overrides: Overrides = None,
    cohort: Annotated[
        str | None, typer.Option(help="Clients of a round, e.g. 10,50; if not given, the config's.", show_default=False)
    ] = None,
    actors: Annotated[
        str | None, typer.Option(help="Actors, e.g. 1,2; if not given, the config's.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each run; the first pays for the warm-up.")] = 3,
    repeats: Annotated[int, typer.Option(help="Runs of each point.")] = 1,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            help="Predict a point from the others, e.g. clients=10000,cohort=1000,actors=8; repeat for more points.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; if not given, runs/scaling-NAME.", show_default=False),
    ] = None,
    load: Load = None,
) -> Outcome:
    """Study scaling: run every combination of clients, cohort and actors, and show where the time goes.

    Run the same command again to continue an interrupted study.
    """
    from fedsim.core.plugins import load_files
    from fedsim.display.next_steps import after_scale
    from fedsim.display.screen import RunConsole
    from fedsim.scaling.command import run_study, study_folder
    from fedsim.scaling.table import scaling_tables

    load_files(load)
    console = RunConsole()
    try:
        study = run_study(
            config,
            overrides or [],
            clients=clients,
            cohort=cohort,
            actors=actors,
            rounds=rounds,
            repeats=repeats,
            output=output,
            console=console,
            predict=predict or [],
        )
    except RunInterrupted as error:
        error.kept = "finished runs are kept; run the same command again to continue"
        raise
    console.print(scaling_tables(study))
    failed = len(study.failures)
    options = {"--cohort": cohort, "--actors": actors}
    varied = [word for name, value in options.items() if value is not None for word in (name, value)]
    asked = [word for point in predict or () for word in ("--predict", point)]
    command = [str(config), *(overrides or []), "--clients", clients, *varied, "--rounds", str(rounds), *asked]
    console.print(after_scale(command, study_folder(config, output), repeats, failed), soft_wrap=True)
    return Outcome(study.record(), failed > 0, f"{failed} run{'s' * (failed != 1)} failed" if failed else "")


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY [KEY=VALUE]... | RUN...",
            help="YAML file of a study or the name of a preset, and overrides of every run; or folders of runs that are done.",
            show_default=False,
            autocompletion=completion.words,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the study; if not given, runs/study-NAME.", show_default=False)
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            min=1,
            help="Runs at a time, each on one actor; 1: one after another, each on all actors. If not given, as many as fit.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, what they cost and the memory they need; run nothing.")
    ] = False,
    checked: Annotated[
        bool, typer.Option("--check", help="Fail if a mean is outside its band in the study's key expect.")
    ] = False,
    load: Load = None,
) -> Outcome:
    """Compare methods over data sets and seeds, with statistics and a report; the same command continues a study."""
    from fedsim.core.plugins import load_files
    from fedsim.display.screen import RunConsole
    from fedsim.study import cli

    load_files(load)
    fine, result = cli.compare(words, output, at_once, dry_run, checked, RunConsole())
    return Outcome(result, not fine, "" if fine else "runs of the study failed, or a mean is outside its band")
