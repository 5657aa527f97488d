"""The source of a plug-in: how it becomes a module, on the driver and in actors, and where in it an error came from."""

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
"""Beginning of the name of the module that a file becomes."""
loading_shipped: ContextVar[bool] = ContextVar("loading_shipped", default=False)
"""Whether a source is loaded in an actor, in which nothing is registered: nobody looks a name up there."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in's source."""

    file: str
    """Name of its file, without folders."""
    module: str
    """Name of the module that it becomes, here and in actors."""
    path: str
    """Where the file lies, or lay."""
    source: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the source, as hexadecimal digits."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def execute(self) -> None:
        """Run the source as its module, in place of an earlier one of that name.

        Raises
        ------
        PluginError
            If it raises: with the line, and what it raised.
        """
        module = ModuleType(self.module)
        module.__file__ = self.path
        # With these, tracebacks show the source's lines where the file is not.
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
    """Turn what comes out of a plug-in's file in this block into one sentence, as :func:`fault_of` does."""
    try:
        yield
    except Exception as error:
        if (fault := fault_of(error)) is None:
            raise
        raise fault from error


def fault_of(error: Exception) -> PluginError | None:
    """Return one sentence with the line of the plug-in's file that an error came out of, None where none is to blame."""
    if isinstance(error, FedsimError):
        return error if isinstance(error, PluginError) else None
    path, trace = None, error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_globals
        path = names.get("__file__") if str(names.get("__name__")).startswith(MODULE) else path
        trace = trace.tb_next
    return None if path is None else PluginError(f"the plug-in {path} failed{line_in(error, path)}: {said(error)}")


def line_in(error: BaseException, path: str) -> str:
    """Return ``", line N"``, the last one in the file that led to an error, or nothing."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    line, trace = None, error.__traceback__
    while trace is not None:
        if path and trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f", line {line}"


def said(error: BaseException) -> str:
    """Return what kind of error it is and the first line of what it says."""
    text = error.msg if isinstance(error, SyntaxError) else (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
