"""The command line: ``fedsim init``, ``presets``, ``run``, ``plan``, ``doctor``, ``config``, ``partition``, ``layers``,
``scale``, ``compare``, ``report``, ``export``, ``cache``.

A user's mistake gets one sentence and exit status 2, never a stack trace.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from fedsim import __version__
from fedsim.cli.export import export
from fedsim.cli.inspection import layers, partition
from fedsim.cli.options import ConfigPath, Load, NoCache, Overrides, read
from fedsim.cli.report import report
from fedsim.cli.starting import init, presets
from fedsim.cli.studies import compare, scale
from fedsim.core.errors import ClientError, FedsimError
from fedsim.kept import cli as cache_cli
from fedsim.simulation.interrupt import RunInterrupted

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A Ray-native simulator of federated prompt tuning.",
    epilog="Begin with: fedsim run quickstart, or with your own data: fedsim init --data FILE.",
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
) -> None:
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


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, load: Load = None) -> None:
    """Show what would run where, the memory it needs, and what limits the number of actors; nothing is started."""
    from fedsim.display.screen import Screen
    from fedsim.planning.command import print_plan

    print_plan(read(config, overrides, load), Screen())


@app.command()
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="YAML file, if any, and overrides.", show_default=False),
    ] = None,
    load: Load = None,
) -> None:
    """Check what a run needs: on this machine, with ray.address on every node, with CONFIG also model and data."""
    from fedsim.core.plugins import load_files
    from fedsim.display.screen import Screen
    from fedsim.doctor.command import examine

    load_files(load)
    if not examine(words or [], Screen()):
        raise typer.Exit(1)


@app.command()
def config(
    config: ConfigPath,
    overrides: Overrides = None,
    plain: Annotated[bool, typer.Option("--plain", help="Leave out the meanings.")] = False,
    load: Load = None,
) -> None:
    """Print the resolved config: every key with its value and its meaning."""
    from fedsim.configuration.text import config_text
    from fedsim.display.screen import can_show

    resolved = read(config, overrides, load)
    text = config_text(resolved, meanings=not plain)
    if not can_show(text):
        text = config_text(resolved, meanings=not plain, escaped=True)
    sys.stdout.write(text)


for command in (init, presets, partition, layers, scale, report, compare, export):
    app.command()(command)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; turn fedsim's errors into one sentence and an exit status."""
    from fedsim.display.screen import escape_output

    escape_output()
    try:
        app()
    except ClientError as error:
        _fail(str(error), 1)
    except FedsimError as error:
        _fail(str(error), 2)
    except RunInterrupted as error:
        print(": ".join(filter(None, [f"interrupted by {error}", error.kept])), file=sys.stderr)
        sys.exit(128 + error.signal_number)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(141)


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
