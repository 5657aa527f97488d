"""Plug-ins: kinds from a user's file, module or installed package.

Nothing in a config runs code. A file is loaded at the user's request (``--load FILE.py``, ``load=[...]`` in Python), a
package if it is installed and has the entry point ``fedsim.plugins``. Plug-ins register their kinds with :func:`register`.

Only the driver looks up names. Actors receive objects; :mod:`fedsim.executors.ray.shipping` sends the sources along.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from fedsim.core.errors import FedsimError, PluginError, listed, suggestion
from fedsim.core.plugin_source import MODULE, Plugin, line_in, loading_shipped, said
from fedsim.core.registry import OURS, Registry, current_origin, find, registering_from

REGISTRIES = {
    "method": "fedsim.core.method:METHODS",
    "correction": "fedsim.core.correction:CORRECTIONS",
    "robust_rule": "fedsim.core.robust:ROBUST_RULES",
    "attack": "fedsim.core.attack:ATTACKS",
    "codec": "fedsim.core.compression.codec:CODECS",
    "callback": "fedsim.simulation.callbacks:CALLBACKS",
    "tracker": "fedsim.records.trackers.base:TRACKERS",
    "partitioner": "partitions.base:PARTITIONERS",
    "metric": "fedsim.data.metrics:METRICS",
    "task": "fedsim.data.tasks:TASKS",
    "family": "clients.backbone.families:FAMILIES",
}
"""Registry of each kind of plug-in; imported on first use."""
WITH_PARAMS = ("correction", "robust_rule", "attack", "codec", "callback", "tracker", "partitioner")
"""Kinds whose classes may have a ``Config``, with keys in the section ``params``."""
ENTRY_POINTS = "fedsim.plugins"

T = TypeVar("T")

_loaded: dict[str, Plugin] = {}
"""Plug-ins of this process by file name."""
_made: dict[str, list[tuple[Registry[Any], str]]] = {}
"""Registrations of each plug-in."""
_unfiled: dict[str, str] = {}
"""Source of each registration by a script or notebook, by kind and name."""
_installed_loaded = False


# -- registering -------------------------------------------------------------------------------------------------------


def register(kind: str, name: str) -> Callable[[T], T]:
    """Return a decorator that registers a class, function or object as ``name``.

    Parameters
    ----------
    kind
        Kind of plug-in: ``method`` (a subclass of :class:`fedsim.core.method.Method`, named by ``server.kind``), ``correction``
        (of :class:`~fedsim.core.correction.Correction`, ``client.correction``), ``robust_rule`` (of
        :class:`~fedsim.core.robust.RobustRule`, ``server.aggregation``), ``attack`` (of
        :class:`~fedsim.core.attack.Attack`, ``attack.kind``), ``codec`` (of
        :class:`~fedsim.core.compression.codec.Codec`, ``compression.up.kind``, ``compression.down.kind``), ``partitioner`` (of
        :class:`partitions.Partitioner`, ``partition.kind``), ``callback`` (of
        :class:`~fedsim.simulation.callbacks.Callback`, ``callbacks``), ``tracker`` (of
        :class:`~fedsim.records.trackers.base.Tracker`, ``tracking.trackers``), ``metric`` (a function from a confusion matrix
        to a number, a task's ``metric``), ``task`` (a :class:`fedsim.data.config.TaskConfig` or its values, ``data.task``) or
        ``family`` (a :class:`clients.backbone.families.Family`, ``model_type`` in a model's config.json).
    name
        Letters, digits, ``_``, ``.`` and ``-``.

    Raises
    ------
    PluginError
        If there is no such kind, the name is taken, or the decorated object cannot be of that kind.

    Examples
    --------
    >>> @fedsim.register("metric", "balanced_accuracy")                     # doctest: +SKIP
    ... def balanced_accuracy(confusion_CC):
    ...     return float((confusion_CC.diagonal() / confusion_CC.sum(axis=1)).mean())
    """
    if kind not in REGISTRIES:
        raise PluginError(
            f"there is no kind of plug-in {kind!r}; kinds are {listed(REGISTRIES, 20)}{suggestion(str(kind), REGISTRIES)}"
        )
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,100}", name):
        raise PluginError(f"a {kind} cannot be named {name!r}; give letters, digits, '_', '.' and '-', at most 100")
    caller = str(sys._getframe(1).f_globals.get("__name__", "__main__"))

    def add(thing: T) -> T:
        if loading_shipped.get():
            return thing
        registry: Registry[Any] = find(REGISTRIES[kind])
        len(registry)  # imports ours, whose names are taken
        registry.add(name, thing, current_origin() or caller)
        if current_origin() is None:
            _note_origin(kind, name, caller, thing)
        return thing

    return add


def _note_origin(kind: str, name: str, caller: str, thing: Any) -> None:
    """Record a registration by a module that was not loaded as a plug-in, so that actors and run records include it."""
    module = sys.modules.get(caller)
    file = getattr(module, "__file__", None)
    if caller != "__main__" and "." not in caller and file is not None and not _is_installed(file):
        with suppress(OSError, UnicodeDecodeError):
            source = Path(file).read_text(encoding="utf-8")
            _loaded[Path(file).name] = Plugin(Path(file).name, caller, str(file), source)
            return
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or an object
        source = ""
    _unfiled[f"{kind} {name}"] = source


def _is_installed(file: str) -> bool:
    paths = sysconfig.get_paths()
    return any(Path(file).is_relative_to(paths[name]) for name in ("purelib", "platlib", "stdlib"))


# -- loading -----------------------------------------------------------------------------------------------------------


def load_plugin(path: str | Path) -> Plugin:
    """Load a Python file that registers kinds; a file already loaded with the same content is not loaded again.

    Raises
    ------
    PluginError
        If the file does not exist, is not Python, raises, registers nothing, or shares its name with another plug-in.
    """
    return load_source(_read(Path(path)))


def load_source(plugin: Plugin) -> Plugin:
    """Load a plug-in whose source is at hand, as an actor that runs whole configs does; see :func:`load_plugin`."""
    known = _loaded.get(plugin.file)
    if known is not None and known.source == plugin.source:
        return known
    other = next((each for each in _loaded.values() if each.module == plugin.module), None)
    if other is not None and other.path != plugin.path:
        raise PluginError(f"the plug-ins {other.path} and {plugin.path} have the same name; rename one of the files")
    _forget(plugin.file)
    with registering_from(plugin.file) as made:
        try:
            plugin.execute()
            if not made:
                raise PluginError(
                    f"the plug-in {plugin.path} registers nothing; put @fedsim.register(KIND, NAME) above what it adds"
                )
        except PluginError:
            for registry, name in made:
                registry.discard(name)
            sys.modules.pop(plugin.module, None)
            _loaded.pop(plugin.file, None)
            raise
    _loaded[plugin.file], _made[plugin.file] = plugin, made
    return plugin


def load_files(paths: Iterable[str | Path] | None) -> None:
    """Load several files; see :func:`load_plugin`."""
    for path in paths or ():
        load_plugin(path)


def load_installed() -> None:
    """Import the ``fedsim.plugins`` entry points of installed packages, once per process.

    Raises
    ------
    PluginError
        If one cannot be imported.
    """
    global _installed_loaded
    if _installed_loaded:
        return
    _installed_loaded = True
    for point in metadata.entry_points(group=ENTRY_POINTS):
        owner = point.dist.name if point.dist is not None else point.value
        try:
            with registering_from(owner):
                point.load()
        except FedsimError:
            raise
        except Exception as error:
            raise PluginError(
                f"the plug-in {point.name} of the installed package {owner} cannot be loaded: {said(error)}; fix or remove it"
            ) from error


def installed_versions() -> dict[str, str]:
    """Return the versions of installed packages that provide plug-ins."""
    points = metadata.entry_points(group=ENTRY_POINTS)
    return {point.dist.name: point.dist.version for point in points if point.dist is not None}


def unload(file: str) -> None:
    """Forget a plug-in and everything it registered."""
    _forget(file)
    if (plugin := _loaded.pop(file, None)) is not None:
        sys.modules.pop(plugin.module, None)


def loaded() -> tuple[Plugin, ...]:
    """Return this process's plug-ins that have a file."""
    return tuple(_loaded.values())


def hashes() -> dict[str, str]:
    """Return the SHA-256 of each plug-in's source by file name; kinds registered by a script are under ``__main__``."""
    found = {file: plugin.sha256 for file, plugin in sorted(_loaded.items())}
    if _unfiled:
        found["__main__"] = hashlib.sha256(repr(sorted(_unfiled.items())).encode()).hexdigest()
    return found


def _forget(file: str) -> None:
    for registry, name in _made.pop(file, ()):
        registry.discard(name)


def _read(path: Path) -> Plugin:
    if path.suffix != ".py":
        raise PluginError(f"the plug-in {path} is not a Python file; give one that ends in .py")
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise PluginError(f"there is no plug-in {path}{suggestion(str(path), near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"cannot read the plug-in {path}: {getattr(error, 'strerror', None) or error}") from None
    module = MODULE + re.sub(r"\W", "_", path.stem)
    return Plugin(path.name, module, str(path.resolve()), source)


# -- calling -----------------------------------------------------------------------------------------------------------


@contextmanager
def guarded(what: str, origin: str) -> Iterator[None]:
    """Turn an exception of a plug-in in this block into one sentence; those of built-in kinds are bugs and pass through.

    Parameters
    ----------
    what
        Name in the message, such as ``metric 'mine'``.
    origin
        Origin from its registry; it also covers installed packages and scripts, which have no plug-in file.
    """
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        if not is_plugin(origin):
            raise
        path = _loaded[origin].path if origin in _loaded else ""
        raise PluginError(f"{what} of {origin} failed{line_in(error, path)}: {said(error)}") from error


def is_plugin(origin: str) -> bool:
    """Whether an origin is a plug-in rather than fedsim itself."""
    return origin.endswith(".py") or origin.partition(".")[0] not in OURS
