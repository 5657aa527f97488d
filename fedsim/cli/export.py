"""``fedsim export``: what a run trained, as an adapter for another library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli import completion
from fedsim.cli.options import Load
from fedsim.core.errors import ConfigError


class ExportFormat(StrEnum):
    """Formats in which a trained prompt can be exported."""

    PEFT = "peft"


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run, or its prompt file; or a URL.",
            show_default=False,
            autocompletion=completion.places,
        ),
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
) -> dict[str, str]:
    """Export what a run trained, prefix, soft prompt, LoRA or IA³, as an adapter for another library."""
    from fedsim.core.plugins import load_files
    from fedsim.display.screen import Screen
    from fedsim.prompts.peft_adapter import default_output, export_peft
    from fedsim.prompts.prompt_file import local_prompt
    from fedsim.records.remote import is_url, refuse_url

    load_files(load)
    refuse_url(output, "--output")
    if output is None and is_url(run):
        raise ConfigError(f"{run} is a URL; give a local folder for the adapter with --output")
    with local_prompt(run) as path:
        folder = export_peft(path, output or default_output(path), client)
    Screen().print(f"adapter: {folder}; its README.md shows how to use it", soft_wrap=True)
    return {"folder": str(folder)}
