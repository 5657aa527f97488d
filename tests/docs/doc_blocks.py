"""The blocks of code in README and docs, and what a comment above each says is done with it.

=============================  ====================================================================================
``<!-- run -->``               its commands, or its Python, are run as they stand, in the order of the page
``<!-- run small: K=V … -->``  the same; each ``fedsim run`` gets the keys of :data:`SMALL`, and these, behind its own, and
                               ``fedsim compare`` a ``--dry-run``
``<!-- config -->``            YAML: laid over the quickstart's config, it is a valid one
``<!-- file: NAME -->``        the content of a file that later blocks of the page use
``<!-- output -->``            what the last run block printed, but for numbers; ``...`` stands for more of it
``<!-- not run: REASON -->``   nothing, and why
=============================  ====================================================================================

Blocks of type ``text`` hold no commands and need no comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from doc_marks import MARKS
from support import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SMALL = (
    "executor=local",
    "rounds=1",
    "data.train_examples=240",
    "data.validation_examples=60",
    "partition.clients=12",
    "partition.holdout_fraction=0.2",
    "client.epochs=1",
    "tracking.plots=false",
)
"""Keys that make a second of a run on the embedded model."""
DEEDS = ("run", "run small", "config", "file", "output", "not run")
_BLOCK = re.compile(r"^(?:<!-- ([^\n]*?) -->\n)?^```(.*?)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: str
    line: int
    kind: str
    text: str
    deed: str | None
    """One of :data:`DEEDS`; None for output without a comment."""
    about: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def lines(self) -> Iterator[str]:
        """Its commands: lines without comments, those continued by a backslash as one."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^|\s)#\s.*", "", line.removeprefix("$ ")).strip():
                yield command


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page."""
    text, found = path.read_text(), []
    page = path.relative_to(ROOT).as_posix()
    for block in _BLOCK.finditer(text):
        comment, kind, inside = block.groups()
        mark = comment or next(
            (deed for (where, start), deed in MARKS.items() if where == page and inside.startswith(start)), None
        )
        deed, _, about = (mark or "").partition(":")
        line = text.count("\n", 0, block.start(2)) + 1
        found.append(Block(page, line, kind, inside, deed.strip() or None, about.strip()))
    return found


ALL = [block for page in PAGES for block in blocks(page)]
