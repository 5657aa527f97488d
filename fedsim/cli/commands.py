"""The command line: ``fedsim run``, ``plan``, ``doctor``, ``config``, ``partition``, ``layers``, ``scale``, ``compare``,
``report``, ``export``, ``cache``.

A user's mistake gets one sentence and exit status 2, never a stack trace.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from clients.tuners.config import ONE_PLACE
from fedsim import __version__
from fedsim.cli.options import ConfigPath, Load, NoCache, Overrides, read
from fedsim.cli.report import report
from fedsim.core.errors import ClientError, ConfigError, FedsimError
from fedsim.kept import cli as cache_cli
from fedsim.simulation.interrupt import RunInterrupted

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A Ray-native simulator of federated prompt tuning.",
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
    from fedsim.display.report import final_table
    from fedsim.display.screen import RunConsole
    from fedsim.simulation import run as simulation

    console = RunConsole()
    summary = simulation.run(
        read(config, overrides, load, no_cache), resume=resume, progress=not quiet, console=console
    )
    console.print(final_table(summary))


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


@app.command()
def partition(
    config: ConfigPath,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Plot of the label distribution by client.")] = Path("partition.png"),
    load: Load = None,
) -> None:
    """Partition the examples over clients, print a summary and save a plot of the label distribution."""
    from fedsim.display.figure import Stamp, check_target, told
    from fedsim.display.plots import plot_label_distribution
    from fedsim.display.report import partition_table
    from fedsim.display.run_words import run_words
    from fedsim.display.screen import Screen
    from fedsim.records.results import class_names
    from fedsim.simulation.preparation import partition_data, with_clients

    check_target(output)
    console = Screen()
    resolved = read(config, overrides, load)
    data = partition_data(resolved)
    for note in data.notes:
        console.print(note, markup=False, soft_wrap=True)
    if resolved.partition.clients is None:
        try:
            with_clients(resolved, data.shards.num_clients)
        except ConfigError as error:  # the partition can still be inspected
            console.print(f"warning: a run with this config is refused: {error}", markup=False, soft_wrap=True)
    counts_NC = data.shards.label_counts(data.dataset.train.labels_N, len(data.task.labels))
    console.print(partition_table(counts_NC, class_names(data.task)))
    with told(console.print, output):
        stamp = Stamp(run_words(resolved, data.task.name))
        plot_label_distribution(counts_NC, class_names(data.task), output, stamp)
    console.print(f"picture: {output}", soft_wrap=True)


@app.command()
def layers(
    config: ConfigPath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Plot of the scores; a plot of the spectra, if any, is saved beside it.", show_default=False),
    ] = None,
    no_cache: NoCache = False,
    load: Load = None,
) -> None:
    """Run only the layer selection: print each layer's score, the share and its cost, and the choice."""
    from fedsim.display.figure import Stamp, check_target
    from fedsim.display.plots import plot_layer_scores
    from fedsim.display.report import format_layers, layers_table, share_table
    from fedsim.display.run_words import run_words
    from fedsim.display.screen import Screen
    from fedsim.display.spectrum_plot import plot_spectrum
    from fedsim.simulation.layer_choice import select_layers

    console = Screen()
    resolved = read(config, overrides, load, no_cache)
    if output is not None:
        check_target(output)
        check_target(_beside(output))
    if resolved.tuner.kind in ONE_PLACE:
        raise ConfigError(
            f"tuner.kind={resolved.tuner.kind} trains at one place of the model, so there are no layers to choose"
        )
    choice = select_layers(resolved, console)
    stamp = Stamp(run_words(resolved))
    if choice.estimate is not None:
        console.print(share_table(choice.record(), choice.spectra()))
        if output is not None:
            picture = plot_spectrum(choice.spectra(), choice.record(), _beside(output), stamp)
            console.print(f"picture: {picture}", soft_wrap=True)
    if choice.scores_L is None or choice.share is None:
        console.print(f"exchanged layers: {format_layers(choice.layers)} (layers.choose={resolved.layers.choose})")
        return
    console.print(layers_table(choice.scores_L, round(choice.share, 4), choice.layers))
    if output is not None:
        plot_layer_scores(choice.scores_L, choice.layers, output, choice.spread_2L, stamp)
        console.print(f"picture: {output}", soft_wrap=True)


@app.command()
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
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; if not given, runs/scaling-NAME.", show_default=False),
    ] = None,
    load: Load = None,
) -> None:
    """Study scaling: run every combination of clients, cohort and actors, and show where the time goes.

    Run the same command again to continue an interrupted study.
    """
    from fedsim.core.plugins import load_files
    from fedsim.display.screen import RunConsole
    from fedsim.scaling.command import run_study
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
        )
    except RunInterrupted as error:
        print(
            f"interrupted by {error}: finished runs are kept; run the same command again to continue", file=sys.stderr
        )
        raise typer.Exit(128 + error.signal_number) from None
    console.print(scaling_tables(study))
    if study.failures:
        raise typer.Exit(1)


app.command()(report)


class ExportFormat(StrEnum):
    """Formats in which a trained prompt can be exported."""

    PEFT = "peft"


@app.command()
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY [KEY=VALUE]... | RUN...",
            help="YAML file of a study, and overrides of every run; or folders of runs that are done.",
            show_default=False,
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
) -> None:
    """Compare methods over data sets and seeds, with statistics and a report; the same command continues a study."""
    from fedsim.core.plugins import load_files
    from fedsim.display.screen import RunConsole
    from fedsim.study import cli

    load_files(load)
    if not cli.compare(words, output, at_once, dry_run, checked, RunConsole()):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run, or its prompt file; or a URL.", show_default=False)
    ],
    to: Annotated[
        ExportFormat,
        typer.Option(help="peft: an adapter that peft.PeftModel.from_pretrained loads.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option(help="New or empty folder; if not given, RUN/prompt/peft.", show_default=False)
    ] = None,
    client: Annotated[
        int | None,
        typer.Option(help="Take the layers that were not exchanged from this client.", show_default=False),
    ] = None,
    load: Load = None,
) -> None:
    """Export what a run trained, prefix, soft prompt, LoRA or IA³, as an adapter for another library."""
    from fedsim.core.plugins import load_files
    from fedsim.display.screen import Screen
    from fedsim.prompts.peft_adapter import default_output, export_peft
    from fedsim.prompts.prompt_file import local_prompt
    from fedsim.records.remote import is_url, refuse_url

    load_files(load)
    refuse_url(output, "--output")
    if output is None and is_url(run):
        _fail(f"{run} is a URL; give a local folder for the adapter with --output", 2)
    with local_prompt(run) as path:
        folder = export_peft(path, output or default_output(path), client)
    Screen().print(f"adapter: {folder}; its README.md shows how to use it", soft_wrap=True)


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


def _beside(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}-spectrum.png")


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
