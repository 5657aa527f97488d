"""Configs and studies that come with fedsim, by name: ``quickstart``, ``methods/fedit``, ``studies/methods``.

In a checkout they are the files of ``configs/``; a wheel holds these as ``fedsim/presets/`` (setup.py), so that links between
them, such as a study's ``base: ../quickstart.yaml``, are the same in both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STUDIES = "studies"
"""Folder of the presets that ``fedsim compare`` reads."""
SCALING = "scaling"
"""Folder of those made for ``fedsim scale``."""
_PACKAGE = Path(__file__).resolve().parents[1]
_HOMES = (_PACKAGE / "presets", _PACKAGE.parent / "configs")
ENDINGS = (".yaml", ".yml")
"""Endings of config files."""
_FIRST = "quickstart.yaml"
"""A preset that is always there, so that another package's folder ``configs`` is not taken for ours."""
_PAPER = re.compile(r" \([^()]*(?:arXiv|et al\.)[^()]*\)")
_END = re.compile(r"\. |, here |\s+fedsim (?:run|compare|scale) ")


class Preset(NamedTuple):
    """A config or study that comes with fedsim."""

    name: str
    path: Path

    @property
    def headline(self) -> str:
        """What it is: the first sentence of the comment that it begins with, without papers."""
        comment = itertools.takewhile(lambda line: line.startswith("# "), self.text.splitlines())
        said = _PAPER.sub("", " ".join(line.removeprefix("# ").strip() for line in comment))
        return _END.split(said, maxsplit=1)[0].rstrip(".")

    @property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")


def presets() -> list[Preset]:
    """Return all presets: those that stand alone first, then folder by folder."""
    home = next((folder for folder in _HOMES if (folder / _FIRST).is_file()), None)
    if home is None:
        return []
    names = {path.relative_to(home).with_suffix("").as_posix(): path for path in home.rglob(f"*{ENDINGS[0]}")}
    ours = (Preset(name, path) for name, path in names.items() if not _of_kubernetes(path))
    return sorted(ours, key=lambda preset: ("/" in preset.name, preset.name))


def _of_kubernetes(path: Path) -> bool:
    return "\napiVersion:" in path.read_text(encoding="utf-8")


def located(path: str | Path, shelf: str = "") -> Path:
    """Return the file that a command was given: a path if there is such a file, else the preset of that name, if any.

    Parameters
    ----------
    shelf
        Folder of presets to look through first, so that ``fedsim compare quickstart`` finds ``studies/quickstart``.
    """
    path = Path(path)
    if path.is_file() or path.is_absolute() or path.suffix in ENDINGS:
        return path
    known = {preset.name: preset.path for preset in presets()}
    return next((known[name] for name in _names(path, shelf) if name in known), path)


def _names(path: Path, shelf: str) -> Sequence[str]:
    name = path.as_posix()
    return (f"{shelf}/{name}", name) if shelf else (name,)
