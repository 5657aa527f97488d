"""Write the files of an adapter's provenance: card, config, RO-Crate metadata."""

from __future__ import annotations

from pathlib import Path

import yaml

from fedsim.prompts.provenance.card import front_matter, sections
from fedsim.prompts.provenance.crate import write_crate
from fedsim.prompts.provenance.origin import CONFIG, Origin

CARD = "README.md"


def write_provenance(folder: Path, origin: Origin, title: str, usage: str) -> None:
    """Write ``README.md``, the run's config if it is on record, and ``ro-crate-metadata.json``.

    Parameters
    ----------
    usage
        Markdown on how to use the adapter; begins with the title.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    if origin.config is not None:
        text = yaml.safe_dump(origin.public[0], sort_keys=False, allow_unicode=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")
    files = sorted({path.name for path in folder.iterdir() if path.is_file()} | {CARD})
    card = f"{front_matter(origin, title)}\n{usage}\n{sections(origin, files)}\n"
    (folder / CARD).write_text(card, encoding="utf-8")
    write_crate(folder, origin, title)
