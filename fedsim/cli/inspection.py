"""``fedsim partition`` and ``fedsim layers``: a part of a run by itself, to look at before the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.tuners.config import ONE_PLACE
from fedsim.cli.options import ConfigPath, Load, NoCache, Overrides, read
from fedsim.core.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.simulation.layer_choice import LayerChoice


def partition(
    config: ConfigPath,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Plot of the label distribution by client.")] = Path("partition.png"),
    load: Load = None,
) -> dict[str, Any]:
    """Partition the examples over clients, print a summary and save a plot of the label distribution."""
    from fedsim.display.figure import Stamp, check_target, told
    from fedsim.display.next_steps import after_partition
    from fedsim.display.plots import plot_label_distribution
    from fedsim.display.report import partition_table
    from fedsim.display.run_words import group_words, run_words
    from fedsim.display.screen import Screen
    from fedsim.records.results import class_names
    from fedsim.simulation.preparation import partition_data, with_clients

    check_target(output)
    console = Screen()
    resolved = read(config, overrides, load)
    data = partition_data(resolved)
    for note in data.notes:
        console.print(note, markup=False, soft_wrap=True)
    refused = False
    if resolved.partition.clients is None:
        try:
            with_clients(resolved, data.shards.num_clients)
        except ConfigError as error:  # the partition can still be inspected
            console.print(f"warning: a run with this config is refused: {error}", markup=False, soft_wrap=True)
            refused = True
    counts_NC = data.shards.label_counts(data.dataset.train.labels_N, len(data.task.groups))
    words = group_words(resolved.model.head.kind)
    console.print(partition_table(counts_NC, class_names(data.task), words))
    with told(console.print, output):
        stamp = Stamp(run_words(resolved, data.task.name))
        plot_label_distribution(counts_NC, class_names(data.task), output, stamp, words)
    console.print(f"picture: {output}", soft_wrap=True)
    if not refused:
        console.print(after_partition(config, overrides or []), soft_wrap=True)
    return {
        "clients": len(counts_NC),
        "examples": int(counts_NC.sum()),
        "classes": list(data.task.groups),
        "counts": counts_NC.tolist(),
        "notes": list(data.notes),
        "picture": str(output),
    }


def layers(
    config: ConfigPath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Plot of the scores; a plot of the spectra, if any, is saved beside it.", show_default=False),
    ] = None,
    no_cache: NoCache = False,
    load: Load = None,
) -> dict[str, Any]:
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
    pictures: list[str] = []
    if choice.estimate is not None:
        console.print(share_table(choice.record(), choice.spectra()))
        if output is not None:
            pictures.append(str(plot_spectrum(choice.spectra(), choice.record(), _beside(output), stamp)))
    if choice.scores_L is None or choice.share is None:
        told = f"exchanged layers: {format_layers(choice.layers)} (layers.choose={resolved.layers.choose})"
        console.print(*(f"picture: {picture}" for picture in pictures), told, sep="\n", soft_wrap=True)
        return _choice(choice, pictures)
    for picture in pictures:
        console.print(f"picture: {picture}", soft_wrap=True)
    console.print(layers_table(choice.scores_L, round(choice.share, 4), choice.layers))
    if output is not None:
        plot_layer_scores(choice.scores_L, choice.layers, output, choice.spread_2L, stamp)
        console.print(f"picture: {output}", soft_wrap=True)
        pictures.append(str(output))
    return _choice(choice, pictures)


def _choice(choice: LayerChoice, pictures: list[str]) -> dict[str, Any]:
    return {**choice.record(), "spectra": list(choice.spectra()), "pictures": pictures}


def _beside(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}-spectrum.png")
