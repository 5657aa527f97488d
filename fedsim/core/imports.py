"""Imports of large packages, made as cheap as Python allows."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def large_imports() -> Iterator[None]:
    """Keep Python's cyclic garbage collector still in a block that imports torch and transformers.

    Almost all objects that imports make stay for good, and the collector would look through hundreds of thousands of them
    again and again: a fifth of the time. Those made by the first such block of a process are taken out of its sight for good.
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
    """Import modules that will be needed soon; one that is not there is left to whoever needs it to report."""
    with large_imports():
        for module in modules:
            with suppress(ImportError):
                importlib.import_module(module)
