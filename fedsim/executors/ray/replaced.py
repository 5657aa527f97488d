"""Detect fedsim functions that were monkeypatched in this process: actors import the modules afresh, without the patch."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fedsim.core.errors import listed

_RUN_BY_ACTORS = ("clients", "server", "fedsim.core", "fedsim.methods")
_RUN_BY_THE_DRIVER = ("clients.backbone.loading", "clients.backbone.location", "server.sampling", "server.selection")
"""Modules whose functions no actor calls: patches in them take effect."""
_DECORATORS = ("contextlib", "functools", "torch", "pydantic", "clients", "server", "fedsim")
"""Packages whose wrappers may surround a function that a module defines."""


def replaced_functions() -> list[str]:
    """Return the functions and methods, as ``module.name``, that differ from what their modules define."""
    found: list[str] = []
    for name, module in sorted(sys.modules.items()):
        ours = any(name == part or name.startswith(f"{part}.") for part in _RUN_BY_ACTORS)
        if ours and name not in _RUN_BY_THE_DRIVER and (code := _code(module)) is not None:
            found += [f"{name}.{inner}" for inner in (*_redefined(vars(module), code), *_imported(vars(module), code))]
    return found


def warning(replaced: list[str]) -> str:
    """Return a warning that names them."""
    return (
        f"warning: replaced in this process: {listed(replaced, 3)}; actors import the code from its files without "
        "these changes; set executor=local to use them"
    )


def _code(module: ModuleType) -> CodeType | None:
    """Return a module's code as compiled from its file, which is what an actor would run."""
    try:
        code: CodeType | None = module.__spec__.loader.get_code(module.__name__)  # type: ignore[union-attr]
    except (AttributeError, ImportError, OSError, SyntaxError):
        return None
    return code


def _redefined(names: Any, code: CodeType, prefix: str = "") -> Iterator[str]:
    """Yield names that are not bound to the function or class that ``code`` (of a module or class) defines."""
    defined: dict[str, list[CodeType]] = {}
    for each in code.co_consts:
        if isinstance(each, CodeType) and names.get(each.co_name) is not None:
            defined.setdefault(each.co_name, []).append(each)  # several for a property with a setter
    for name, own in defined.items():
        value = names[name]
        if own[0].co_flags & CO_OPTIMIZED:
            if _innermost(value) not in own:
                yield prefix + name
        elif prefix or hasattr(value, "remote"):
            continue  # a nested class, or an actor class that replaced the class it was made from
        elif not isinstance(value, type) or (value.__module__, value.__qualname__) != (names["__name__"], name):
            yield name
        else:
            yield from _redefined(vars(value), own[0], f"{name}.")


def _innermost(value: Any) -> CodeType | None:
    """Return the code of a function, unwrapped of the decorators that fedsim uses."""
    while True:
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif hasattr(value, "__wrapped__") and _package(value) in _DECORATORS:
            value = value.__wrapped__
        else:
            return value.__code__ if isinstance(value, FunctionType) else None


def _package(wrapper: Any) -> str:
    """Return the package that made a wrapper, whose ``__module__`` is that of the wrapped function."""
    name = getattr(wrapper, "__globals__", {}).get("__name__") or type(wrapper).__module__
    return str(name).partition(".")[0]


def _imported(names: Any, code: CodeType) -> Iterator[str]:
    """Yield names imported from another fedsim module that are no longer bound to what was imported."""
    source, imported = "", ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            source = step.argval
        elif step.opname == "IMPORT_FROM":
            imported = step.argval
        elif step.opname == "STORE_NAME" and imported:
            origin = getattr(sys.modules.get(source), imported, None)
            value = names.get(step.argval, origin)  # missing if the import is for type checkers only
            if source.startswith(_RUN_BY_ACTORS) and callable(origin) and value is not origin:
                yield step.argval
            imported = ""
