"""The command line: ``fedsim init``, ``presets``, ``run``, ``plan``, ``doctor``, ``config``, ``partition``, ``layers``,
``scale``, ``compare``, ``watch``, ``report``, ``export``, ``schema``, ``cache``.

:mod:`fedsim.cli.main` runs them; what a command returns is what it prints with ``--json`` (:mod:`fedsim.cli.machine`).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from fedsim import __version__
from fedsim.cli import completion
from fedsim.cli.export import export
from fedsim.cli.inspection import layers, partition
from fedsim.cli.machine import Outcome
from fedsim.cli.options import ConfigPath, Load, NoCache, Overrides, read
from fedsim.cli.report import report
from fedsim.cli.schema import schema
from fedsim.cli.starting import init, presets
from fedsim.cli.studies import compare, scale
from fedsim.cli.watching import watch
from fedsim.kept import cli as cache_cli

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A Ray-native simulator of federated prompt tuning.",
    epilog="Begin with: fedsim run quickstart, or with your own data: fedsim init FILE.",
)
app.add_typer(cache_cli.app, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's newest checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show notes and the final table only.")] = False,
    no_cache: NoCache = False,
    load: Load = None,
) -> dict[str, Any]:
    """Run a simulation: results go to runs/NAME, or to output=FOLDER."""
    from fedsim.display.next_steps import after_run
    from fedsim.display.report import final_table
    from fedsim.display.screen import RunConsole
    from fedsim.simulation import run as simulation

    console = RunConsole()
    resolved = read(config, overrides, load, no_cache)
    summary = simulation.run(resolved, resume=resume, progress=not quiet, console=console)
    console.print(final_table(summary))
    if not quiet and (steps := after_run(summary, resolved)) is not None:
        console.print(steps, soft_wrap=True)
    return summary


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, load: Load = None) -> dict[str, Any]:
    """Show what would run where, the memory it needs, and what limits the number of actors; nothing is started."""
    from fedsim.display.next_steps import after_plan
    from fedsim.display.screen import Screen
    from fedsim.planning.command import print_plan

    screen = Screen()
    planned = print_plan(read(config, overrides, load), screen)
    screen.print(after_plan(config, overrides or []), soft_wrap=True)
    return planned


@app.command()
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="YAML file, if any, and overrides.",
            show_default=False,
            autocompletion=completion.words,
        ),
    ] = None,
    load: Load = None,
) -> Outcome:
    """Check what a run needs: on this machine, with ray.address on every node, with CONFIG also model and data."""
    from fedsim.core.plugins import load_files
    from fedsim.display.next_steps import after_doctor
    from fedsim.display.screen import Screen
    from fedsim.doctor.command import examine

    load_files(load)
    screen = Screen()
    findings = examine(words or [], screen)
    problems = sum(finding.status == "problem" for finding in findings)
    if (steps := after_doctor(words or [], problems)) is not None:
        screen.print(steps, soft_wrap=True)
    counted = f"{problems} problem{'s' * (problems != 1)}"
    return Outcome({"findings": [asdict(finding) for finding in findings]}, problems > 0, counted if problems else "")


@app.command()
def config(
    config: ConfigPath,
    overrides: Overrides = None,
    plain: Annotated[bool, typer.Option("--plain", help="Leave out the meanings.")] = False,
    load: Load = None,
) -> dict[str, Any]:
    """Print the resolved config: every key with its value and its meaning."""
    from fedsim.configuration.text import config_text
    from fedsim.display.screen import can_show

    resolved = read(config, overrides, load)
    text = config_text(resolved, meanings=not plain)
    if not can_show(text):
        text = config_text(resolved, meanings=not plain, escaped=True)
    sys.stdout.write(text)
    return resolved.model_dump(mode="json")


for command in (init, presets, partition, layers, scale, watch, report, compare, export, schema):
    app.command()(command)


@app.command()
def version() -> dict[str, str]:
    """Print the version."""
    print(__version__)
    return {"version": __version__}
