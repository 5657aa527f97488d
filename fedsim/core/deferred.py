"""Modules that are imported when they are first used.

The driver of a run reads tuners, model families and specifications, but computes nothing with them: it needs neither torch nor
transformers, which cost seconds and hundreds of megabytes. Modules that it reads name them by :func:`deferred`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands for a module; its attributes are looked up in the module itself."""

    def __getattr__(self, name: str) -> Any:
        module = sys.modules.get(self.__name__) or import_module(self.__name__)
        return getattr(module, name)


def deferred(name: str) -> ModuleType:
    """Return a module if it is imported already, as in workers, else a stand-in that imports it on first use."""
    return sys.modules.get(name) or _Deferred(name)


def import_deferred(package: str) -> None:
    """Put the modules in place of their stand-ins in all imported modules of a package, for a process that computes."""
    for name, module in sys.modules.copy().items():  # a tracker's thread may import meanwhile
        if name.partition(".")[0] != package:
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, _Deferred):
                setattr(module, attribute, import_module(value.__name__))
