"""Open registries: what a config's kinds stand for, ours and those of plug-ins.

A registry imports the modules that hold our own kinds when it is first asked, so that naming one costs no import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationInfo
from pydantic_core import PydanticCustomError

from fedsim.core.errors import PluginError, listed, suggestion
from fedsim.core.uses import EVERY_KEY

OURS = ("fedsim", "clients", "server", "partitions")
"""Packages whose kinds are not plug-ins."""

T = TypeVar("T")
Check = Callable[[str, Any, str], Any]
"""From a name, what is to be registered, and what the registry holds, to what is registered; raises ``PluginError``."""

_ORIGIN: ContextVar[str | None] = ContextVar("origin", default=None)
_MADE: ContextVar[list[tuple[Registry[Any], str]] | None] = ContextVar("made", default=None)


@contextmanager
def registering_from(origin: str) -> Iterator[list[tuple[Registry[Any], str]]]:
    """Note for all kinds that are registered in this block where they come from, such as a plug-in's file.

    Yields
    ------
    list
        What is registered in the block: registries and names.
    """
    made: list[tuple[Registry[Any], str]] = []
    tokens = _ORIGIN.set(origin), _MADE.set(made)
    try:
        yield made
    finally:
        _ORIGIN.reset(tokens[0])
        _MADE.reset(tokens[1])


def current_origin() -> str | None:
    """Return what :func:`registering_from` has set, if anything."""
    return _ORIGIN.get()


class Registry(Mapping[str, T]):
    """Things of one sort by name.

    Parameters
    ----------
    what
        What they are, in messages: ``server method``.
    key
        The config's key that names one: ``server.kind``; None where no key does.
    modules
        Modules that register our own when they are imported.
    check
        Refuses what cannot be one of them, or makes it one.
    """

    def __init__(
        self, what: str, key: str | None = None, modules: tuple[str, ...] = (), check: Check | None = None
    ) -> None:
        self.what, self.key = what, key
        self._modules, self._check = modules, check
        self._things: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates.

        Raises
        ------
        PluginError
            If the name is taken by a thing from elsewhere, or what is decorated is no such thing.
        """
        # What plug-ins import of ours while they are loaded is still ours.
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        ours = caller if caller.partition(".")[0] in OURS else None

        def decorate(thing: T) -> T:
            origin = ours or _ORIGIN.get() or getattr(thing, "__module__", None) or "this process"
            self.add(name, thing, origin)
            return thing

        return decorate

    def add(self, name: str, thing: Any, origin: str) -> None:
        """Add a thing that comes from ``origin``; see :meth:`register`."""
        known = self._origins.get(name)
        if known is not None and known != origin:
            raise PluginError(
                f"the {self.what} {name!r} of {origin} cannot be registered: {known} has one of that name; rename one"
            )
        self._things[name] = thing if self._check is None else self._check(name, thing, self.what)
        self._origins[name] = origin
        if origin == _ORIGIN.get() and (made := _MADE.get()) is not None:
            made.append((self, name))

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

    def discard(self, name: str) -> None:
        """Take a thing out, if it is there."""
        self._things.pop(name, None)
        self._origins.pop(name, None)

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


def subclass_of(base: type) -> Check:
    """Return a check for registries of classes."""

    def check(name: str, thing: Any, what: str) -> Any:
        if not (isinstance(thing, type) and issubclass(thing, base)):
            raise PluginError(f"the {what} {name!r} has to be a subclass of {base.__name__}, not {_described(thing)}")
        config = getattr(thing, "Config", None)
        if config is not None and not (isinstance(config, type) and issubclass(config, BaseModel)):
            raise PluginError(f"the {what} {name!r} has a Config that is no fedsim.core.schema.Schema")
        return thing

    return check


def instance_of(base: type) -> Check:
    """Return a check for registries of objects."""

    def check(name: str, thing: Any, what: str) -> Any:
        if not isinstance(thing, base):
            raise PluginError(f"the {what} {name!r} has to be a {base.__name__}, not {_described(thing)}")
        return thing

    return check


def function(name: str, thing: Any, what: str) -> Any:
    """Check what goes into a registry of functions."""
    if not callable(thing) or isinstance(thing, type):
        raise PluginError(f"the {what} {name!r} has to be a function, not {_described(thing)}")
    return thing


def _described(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def find(path: str) -> Any:
    """Return what ``module:NAME`` stands for; the module is imported."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def known_name(path: str) -> AfterValidator:
    """Return the validator of a config's word that names something in the registry ``module:NAME``.

    In records, which are read with the context ``EVERY_KEY``, any word may stand: what they tell of need not be here.
    """

    def check(name: str, info: ValidationInfo) -> str:
        registry: Registry[Any] = find(path)
        if info.context != EVERY_KEY and name not in registry:
            raise PydanticCustomError(
                "unknown_name", "{sentence}", {"sentence": registry.unknown(name), "known": [*registry]}
            )
        return name

    return AfterValidator(check)
