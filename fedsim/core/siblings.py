"""Makes ``clients``, ``server`` and ``partitions`` resolve to the packages beside fedsim.

Python looks for them along ``sys.path``, which starts with the current folder or that of the user's script, in Ray's workers
too; a ``server.py`` or a folder ``clients`` there would shadow them. An actor's class first needs a module of fedsim, and
importing fedsim installs this finder in the worker before any of the others is looked up.

The names are general ones, so two more accidents are answered with a sentence: another distribution with a package ``server``
that was installed over ours, and a user's script that imports a ``server.py`` beside it and would get ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = ("clients", "server", "partitions")
_OURS = (*NAMES, "fedsim")
_ROOT = str(Path(__file__).resolve().parents[2])
_KNOWN_BY = "config.py"
"""A module that each of these packages has, and hardly another of the name."""


class Siblings(MetaPathFinder):
    """Finds these packages beside fedsim, before ``sys.path`` is looked through."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the location of one of the packages; everything else is left to Python.

        Raises
        ------
        ImportError
            If the code that imports it lies beside a module of that name of its own.
        """
        if path is not None or name not in NAMES:
            return None
        own = _beside_importer(name)
        if own is not None:
            raise ImportError(
                f"{own} has the name of a package of fedsim, and where fedsim is imported, {name!r} means that package; rename "
                "the file",
                name=name,
            )
        return PathFinder.find_spec(name, [_ROOT])


def _beside_importer(name: str) -> str | None:
    """Return the user's own module of that name if it lies beside the code that imports it."""
    importer = next(_callers(), None)
    if importer is None or str(importer.get("__name__")).partition(".")[0] in _OURS:
        return None
    file = importer.get("__file__")
    folder = str(Path(file).resolve().parent) if file else None
    if folder is None or folder == _ROOT or folder not in {str(Path(entry or ".").resolve()) for entry in sys.path}:
        return None
    found = PathFinder.find_spec(name, [folder])
    return None if found is None else found.origin or next(iter(found.submodule_search_locations or ()), None)


def _callers() -> Iterator[dict[str, Any]]:
    """Yield the globals of the code that asked for an import, from the innermost, without Python's own machinery."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith("<frozen importlib") and frame.f_globals.get("__name__") != __name__:
            yield frame.f_globals
        frame = frame.f_back  # type: ignore[assignment]


def find_first() -> None:
    """Install the finder in this process.

    Raises
    ------
    ImportError
        If another module of that name is loaded already, or another distribution's package lies in place of ours.
    """
    for name in NAMES:
        if not Path(_ROOT, name, _KNOWN_BY).is_file() or not _is_ours(name):
            raise ImportError(
                f"the package {name!r} beside fedsim, {Path(_ROOT, name)}, is not fedsim's: another distribution with a "
                "package of that name was installed over it or removed; install fedsim again, in an environment without the "
                "other: pip install --force-reinstall --no-deps fedsim"
            )
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


def _is_ours(name: str) -> bool:
    """Whether a package begins with our docstring: what is installed over a package replaces its ``__init__.py``."""
    try:
        return Path(_ROOT, name, "__init__.py").read_text(encoding="utf-8").startswith(_FIRST_WORDS[name])
    except (OSError, UnicodeDecodeError):
        return False


_FIRST_WORDS = {
    "clients": '"""What happens on a device',
    "server": '"""The server side',
    "partitions": '"""Partition of a dataset over clients',
}
