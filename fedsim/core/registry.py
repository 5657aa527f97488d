"""Open registries: what a config's kinds stand for, ours and those of plug-ins.

A registry imports the modules that hold our own kinds when it is first asked, so that naming one costs no import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from fedsim.core.errors import PluginError, listed, suggestion

T = TypeVar("T")

_ORIGIN: ContextVar[str | None] = ContextVar("origin", default=None)


@contextmanager
def registering_from(origin: str) -> Iterator[None]:
    """Note for all kinds that are registered in this block where they come from, such as a plug-in's file."""
    token = _ORIGIN.set(origin)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


class Registry(Generic[T]):
    """Things of one sort by name.

    Parameters
    ----------
    what
        What they are, in messages: ``server method``.
    key
        The config's key that names one: ``server.kind``; None where no key does.
    modules
        Modules that register our own when they are imported.
    """

    def __init__(self, what: str, key: str | None = None, modules: tuple[str, ...] = ()) -> None:
        self.what, self.key = what, key
        self._modules = modules
        self._things: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates.

        Raises
        ------
        PluginError
            If the name is taken by a thing from elsewhere.
        """

        def add(thing: T) -> T:
            origin = _ORIGIN.get() or getattr(thing, "__module__", None) or "this process"
            known = self._origins.get(name)
            if known is not None and known != origin:
                raise PluginError(
                    f"the {self.what} {name!r} of {origin} cannot be registered: {known} has one of that name; rename one"
                )
            self._things[name], self._origins[name] = thing, origin
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """Return the thing of a name.

        Raises
        ------
        KeyError
            If there is none; its only argument is a sentence that names those there are and the one most like it.
        """
        if name not in self._things:
            self._import()
        try:
            return self._things[name]
        except KeyError:
            raise KeyError(self.unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        self._import()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        self._import()
        return iter(tuple(self._things))

    def __len__(self) -> int:
        self._import()
        return len(self._things)

    def origin(self, name: str) -> str:
        """Return where a thing comes from: a module, or a plug-in's file."""
        self._import()
        return self._origins[name]

    def unknown(self, name: str) -> str:
        """Return the sentence that answers a name that there is no thing of."""
        return f"there is no {self.what} {name!r}; known are {listed(self, 40)}{suggestion(name, self)}"

    def _import(self) -> None:
        modules, self._modules = self._modules, ()
        for module in modules:
            importlib.import_module(module)
