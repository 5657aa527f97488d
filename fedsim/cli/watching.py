"""``fedsim watch``: a run or a study as it goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from fedsim.cli import completion
from fedsim.cli.machine import Outcome


def watch(
    place: Annotated[
        str,
        typer.Argument(
            metavar="RUN|STUDY",
            help="Folder of a run or a study, or a run's URL.",
            show_default=False,
            autocompletion=completion.places,
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show it as it stands, and return.")] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds between two looks; if not given 1, and 10 for a URL.", show_default=False),
    ] = None,
) -> Outcome:
    """Watch a run or a study until it ends: rounds, metric, traffic, time left; Ctrl-C ends the look, not the run.

    The exit status is 1 if it was interrupted, failed, or died without a word.
    """
    from fedsim.display.screen import Screen, output_is_kept
    from fedsim.display.watch.command import watch as look
    from fedsim.display.watch.command import why_failed

    found = look(place, Screen(stderr=output_is_kept()), once, every)
    why = why_failed(found)
    return Outcome(found, bool(why), why)
