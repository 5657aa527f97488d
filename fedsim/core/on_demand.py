"""Modules whose own code runs when something of theirs is first asked for; submodules of packages can be imported before."""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_LOADING = threading.RLock()


class OnDemand(ModuleType):
    """A module whose code has not run yet."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        closed = name == "__path__" and spec is not None and spec.submodule_search_locations is not None
        if spec is None or (name.startswith("__") and not closed):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.load()
        # A module may put another object in its place.
        return getattr(sys.modules[self.__name__], name)

    def load(self) -> None:
        """Run the module's code, which replaces attributes that were set before."""
        with _LOADING:
            spec = self.__spec__
            if type(self) is OnDemand and spec is not None and spec.loader is not None:
                self.__class__ = ModuleType  # type: ignore[assignment]
                if spec.submodule_search_locations is not None:
                    self.__path__ = list(spec.submodule_search_locations)
                spec.loader.exec_module(self)

    def close(self) -> None:
        """Let the import of a package's submodule run the package's code first from now on, as Python does."""
        if type(self) is OnDemand:
            del self.__path__


def on_demand(name: str) -> ModuleType:
    """Return a module, and let it be found as one that is imported; its parent is imported, its own code waits."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = importlib.util.module_from_spec(spec)
    module.__class__ = OnDemand
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    return module
