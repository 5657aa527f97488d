"""``fedsim report``: a run, a study or a scaling study as a page or as tables."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli import completion
from fedsim.cli.options import Load


class ReportFormat(StrEnum):
    """Forms in which a report leaves."""

    HTML = "html"
    MD = "md"
    LATEX = "latex"
    CSV = "csv"
    PARQUET = "parquet"


def report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="RUN|STUDY|SCALING",
            help="Folder of a run, a study or a scaling study; or a run's URL.",
            show_default=False,
            autocompletion=completion.places,
        ),
    ],
    to: Annotated[
        ReportFormat, typer.Option(help="html: a page that loads nothing from elsewhere; the others: its tables.")
    ] = ReportFormat.HTML,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write, or a folder for csv and parquet of a study, two files each; if not given, in the folder.",
            show_default=False,
        ),
    ] = None,
    load: Load = None,
) -> dict[str, list[str]]:
    """Write the report of a run, a study or a scaling study: one HTML page, or its tables."""
    from fedsim.core.plugins import load_files
    from fedsim.display.page.report import write_report
    from fedsim.display.screen import Screen

    load_files(load)
    screen = Screen()
    files = write_report(folder, to.value, output, lambda note: screen.print(note, markup=False, soft_wrap=True))
    for path in files:
        screen.print(f"report: {path}", markup=False, soft_wrap=True)
    return {"files": [str(path) for path in files]}
