"""Cheaper imports of large packages."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def large_imports() -> Iterator[None]:
    """Pause Python's cyclic garbage collector in a block that imports torch and transformers.

    Almost all objects created by imports are permanent, and scanning hundreds of thousands of them again and again takes a
    fifth of the import time. Objects created by the first such block of a process are excluded from collection for good.
    """
    first, was_enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first and "torch" in sys.modules:
            gc.freeze()
        if was_enabled:
            gc.enable()


def import_ahead(modules: Iterable[str]) -> None:
    """Import modules that will be needed soon; a missing one is ignored here and reported where it is used."""
    with large_imports():
        for module in modules:
            with suppress(ImportError):
                importlib.import_module(module)
