"""Open registries of the kinds a config can name, built-in and from plug-ins.

A registry imports the modules of built-in kinds on first use, so declaring one costs no import.
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
"""Maps a name, the object to register and the registry's description to the object stored; may raise ``PluginError``."""

_ORIGIN: ContextVar[str | None] = ContextVar("origin", default=None)
_MADE: ContextVar[list[tuple[Registry[Any], str]] | None] = ContextVar("made", default=None)


@contextmanager
def registering_from(origin: str) -> Iterator[list[tuple[Registry[Any], str]]]:
    """Record an origin, such as a plug-in's file, for every kind registered in this block.

    Yields
    ------
    list
        Registrations made in the block, as registries and names.
    """
    made: list[tuple[Registry[Any], str]] = []
    tokens = _ORIGIN.set(origin), _MADE.set(made)
    try:
        yield made
    finally:
        _ORIGIN.reset(tokens[0])
        _MADE.reset(tokens[1])


def current_origin() -> str | None:
    """Return the origin set by :func:`registering_from`, if any."""
    return _ORIGIN.get()


class Registry(Mapping[str, T]):
    """Objects of one kind by name.

    Parameters
    ----------
    what
        Description in messages, such as ``server method``.
    key
        Config key that names one, such as ``server.kind``; None if there is none.
    modules
        Modules that register the built-in objects when imported.
    check
        Refuses an unsuitable object, or converts it.
    """

    def __init__(
        self, what: str, key: str | None = None, modules: tuple[str, ...] = (), check: Check | None = None
    ) -> None:
        self.what, self.key = what, key
        self._modules, self._check = modules, check
        self._things: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object.

        Raises
        ------
        PluginError
            If the name is taken by an object of another origin, or the object is unsuitable.
        """
        # Built-in modules that a plug-in imports while it is loaded are still built-in.
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        ours = caller if caller.partition(".")[0] in OURS else None

        def decorate(thing: T) -> T:
            origin = ours or _ORIGIN.get() or getattr(thing, "__module__", None) or "this process"
            self.add(name, thing, origin)
            return thing

        return decorate

    def add(self, name: str, thing: Any, origin: str) -> None:
        """Add an object that comes from ``origin``; see :meth:`register`."""
        known = self._origins.get(name)
        if known is not None and known != origin:
            raise PluginError(
                f"the {self.what} {name!r} of {origin} cannot be registered: {known} already has one of that name; rename one"
            )
        self._things[name] = thing if self._check is None else self._check(name, thing, self.what)
        self._origins[name] = origin
        if origin == _ORIGIN.get() and (made := _MADE.get()) is not None:
            made.append((self, name))

    def __getitem__(self, name: str) -> T:
        """Return the object of a name.

        Raises
        ------
        KeyError
            If there is none; its only argument is a sentence that lists the known names and suggests the closest.
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
        """Remove an object, if present."""
        self._things.pop(name, None)
        self._origins.pop(name, None)

    def origin(self, name: str) -> str:
        """Return the origin of an object: a module, or a plug-in's file."""
        self._import()
        return self._origins[name]

    def unknown(self, name: str) -> str:
        """Return the error sentence for an unknown name."""
        return f"there is no {self.what} {name!r}; known are {listed(self, 40)}{suggestion(name, self)}"

    def _import(self) -> None:
        modules, self._modules = self._modules, ()
        for module in modules:
            importlib.import_module(module)


def subclass_of(base: type) -> Check:
    """Return a check for registries of classes."""

    def check(name: str, thing: Any, what: str) -> Any:
        if not (isinstance(thing, type) and issubclass(thing, base)):
            raise PluginError(f"the {what} {name!r} must be a subclass of {base.__name__}, not {_described(thing)}")
        config = getattr(thing, "Config", None)
        if config is not None and not (isinstance(config, type) and issubclass(config, BaseModel)):
            raise PluginError(f"the {what} {name!r} has a Config that is not a fedsim.core.schema.Schema")
        return thing

    return check


def instance_of(base: type) -> Check:
    """Return a check for registries of objects."""

    def check(name: str, thing: Any, what: str) -> Any:
        if not isinstance(thing, base):
            raise PluginError(f"the {what} {name!r} must be a {base.__name__}, not {_described(thing)}")
        return thing

    return check


def function(name: str, thing: Any, what: str) -> Any:
    """Check an object for a registry of functions."""
    if not callable(thing) or isinstance(thing, type):
        raise PluginError(f"the {what} {name!r} must be a function, not {_described(thing)}")
    return thing


def _described(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def find(path: str) -> Any:
    """Import a module and return its object, given as ``module:NAME``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def known_name(path: str) -> AfterValidator:
    """Return a validator for a config value that names an entry of the registry ``module:NAME``.

    Records, read with the context ``EVERY_KEY``, may hold any name: the plug-ins of a recorded run need not be loaded.
    """

    def check(name: str, info: ValidationInfo) -> str:
        registry: Registry[Any] = find(path)
        if info.context != EVERY_KEY and name not in registry:
            raise PydanticCustomError(
                "unknown_name", "{sentence}", {"sentence": registry.unknown(name), "known": [*registry]}
            )
        return name

    check.registry = path  # type: ignore[attr-defined]  # for the JSON Schema of configs
    return AfterValidator(check)
