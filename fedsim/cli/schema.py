"""``fedsim schema``: the JSON Schema of what fedsim reads, for editors, and of what it prints, for programs."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from fedsim.cli.options import Load


class SchemaOf(StrEnum):
    """What has a schema."""

    CONFIG = "config"
    STUDY = "study"
    OUTPUT = "output"


def schema(
    what: Annotated[
        SchemaOf,
        typer.Argument(
            metavar="[config|study|output]",
            help="config: files of fedsim run; study: of fedsim compare; output: what --json prints.",
            show_default=False,
        ),
    ] = SchemaOf.CONFIG,
    load: Load = None,
) -> dict[str, Any]:
    """Print the JSON Schema (2020-12) of a kind of files, by which editors complete and check them."""
    from fedsim.core.plugins import load_files, load_installed

    load_files(load)
    load_installed()
    if what is SchemaOf.OUTPUT:
        from fedsim.cli.outputs import output_schema

        found = output_schema()
    elif what is SchemaOf.STUDY:
        from fedsim.study.json_schema import study_schema

        found = study_schema()
    else:
        from fedsim.configuration.json_schema import config_schema

        found = config_schema()
    print(json.dumps(found, indent=2, ensure_ascii=True))
    return found
