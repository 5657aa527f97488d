"""Plug-in source: loading it as a module, on the driver and in actors, and locating errors in it."""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType

from fedsim.core.errors import FedsimError, PluginError

MODULE = "fedsim_plugin_"
"""Prefix of the module name given to a plug-in file."""
loading_shipped: ContextVar[bool] = ContextVar("loading_shipped", default=False)
"""Whether a source is being loaded in an actor, where nothing is registered because names are never looked up."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in's source."""

    file: str
    """Name of its file, without folders."""
    module: str
    """Name of its module, here and in actors."""
    path: str
    """Path of the file; in an actor it need not exist."""
    source: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the source, as hexadecimal digits."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def execute(self) -> None:
        """Run the source as its module, replacing an earlier module of that name.

        Raises
        ------
        PluginError
            If the source raises; names the line and the exception.
        """
        module = ModuleType(self.module)
        module.__file__ = self.path
        # Lets tracebacks show source lines on machines that lack the file.
        linecache.cache[self.path] = (len(self.source), None, self.source.splitlines(keepends=True), self.path)
        before = sys.modules.get(self.module)
        sys.modules[self.module] = module
        try:
            exec(compile(self.source, self.path, "exec", dont_inherit=True), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[self.module]
            if before is not None:
                sys.modules[self.module] = before
            if isinstance(error, FedsimError):
                raise
            raise PluginError(
                f"the plug-in {self.path} cannot be loaded{line_in(error, self.path)}: {said(error)}"
            ) from error


@contextmanager
def blaming() -> Iterator[None]:
    """Turn an exception from a plug-in's file in this block into one sentence; see :func:`fault_of`.

    Unlike :func:`fedsim.core.plugins.guarded` it needs no registry, so that it works in actors.
    """
    try:
        yield
    except Exception as error:
        if (fault := fault_of(error)) is None:
            raise
        raise fault from error


def fault_of(error: Exception) -> PluginError | None:
    """Return one sentence with the plug-in's file and line that caused an error, or None if no plug-in did."""
    if isinstance(error, FedsimError):
        return error if isinstance(error, PluginError) else None
    path, trace = None, error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_globals
        path = names.get("__file__") if str(names.get("__name__")).startswith(MODULE) else path
        trace = trace.tb_next
    return None if path is None else PluginError(f"the plug-in {path} failed{line_in(error, path)}: {said(error)}")


def line_in(error: BaseException, path: str) -> str:
    """Return ``", line N"`` for the innermost line of the file in an error's traceback, or an empty string."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    line, trace = None, error.__traceback__
    while trace is not None:
        if path and trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f", line {line}"


def said(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    text = error.msg if isinstance(error, SyntaxError) else (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
