"""Makes ``clients``, ``server`` and ``partitions`` resolve to the packages beside fedsim.

Python looks for them along ``sys.path``, which starts with the current folder or that of the user's script, in Ray's workers
too; a ``server.py`` or a folder ``clients`` there would shadow them. An actor's class first needs a module of fedsim, and
importing fedsim installs this finder in the worker before any of the others is looked up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

NAMES = ("clients", "server", "partitions")
_ROOT = str(Path(__file__).resolve().parents[2])


class Siblings(MetaPathFinder):
    """Finds these packages beside fedsim, before ``sys.path`` is looked through."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the location of one of the packages; everything else is left to Python."""
        return PathFinder.find_spec(name, [_ROOT]) if path is None and name in NAMES else None


def find_first() -> None:
    """Install the finder in this process.

    Raises
    ------
    ImportError
        If another module of that name is loaded already.
    """
    for name in NAMES:
        loaded = sys.modules.get(name)
        file = getattr(loaded, "__file__", None)
        if loaded is not None and (file is None or Path(file).resolve().parent.parent != Path(_ROOT)):
            where = file or next(iter(getattr(loaded, "__path__", ())), "no file")
            raise ImportError(
                f"fedsim has a package named {name!r}, but another module of that name is loaded already, from {where}; rename "
                "that one, or import fedsim in another process"
            )
    if not any(isinstance(finder, Siblings) for finder in sys.meta_path):
        sys.meta_path.insert(0, Siblings())
