"""Sends plug-ins' sources along with the objects that are made of them, to any process on any machine.

A pickle names a class by its module. Here the sources stand in front of the object in the same pickle, and are made modules
while it is read, before the first name of theirs comes up: also where Ray hands an actor the arguments of its constructor.
What is registered by a script or a notebook is pickled whole, as Ray does with all that is defined there.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from ray import cloudpickle

from fedsim.core.errors import PluginError
from fedsim.core.plugin_source import Plugin, loading_shipped
from fedsim.core.plugins import loaded

UNLOADED = r"on \S+: the plug-in .* cannot be loaded.*"
"""What an actor says where a plug-in that runs here does not run there."""


def shipped(value: Any) -> Any:
    """Return what pickles so that it is read back as ``value`` where this process's plug-ins are not.

    What names none of them goes as it is: the server need not load what a plug-in for clients imports.
    """
    plugins = loaded()
    if not plugins:
        return value
    # Arrays stay out of these bytes.
    named = cloudpickle.dumps(value, protocol=5, buffer_callback=lambda buffer: False)
    return _Shipped(plugins, value) if any(plugin.module.encode() in named for plugin in plugins) else value


class _Shipped:
    def __init__(self, plugins: tuple[Plugin, ...], value: Any) -> None:
        self._plugins, self._value = plugins, value

    def __reduce__(self) -> Any:
        return _value, (_Sources(self._plugins), self._value)


class _Sources:
    def __init__(self, plugins: tuple[Plugin, ...]) -> None:
        self._plugins = plugins

    def __reduce__(self) -> Any:
        return _load, self._plugins


_here: dict[str, str] = {}
"""SHA-256 of each module that came with an object."""


def _load(*plugins: Plugin) -> None:
    known = {each.module: each.sha256 for each in loaded()}
    for plugin in plugins:
        if plugin.module in sys.modules and plugin.sha256 in (known.get(plugin.module), _here.get(plugin.module)):
            continue
        token = loading_shipped.set(True)
        try:
            plugin.execute()
        except PluginError as error:
            raise PluginError(f"on {socket.gethostname()}: {error}") from error
        finally:
            loading_shipped.reset(token)
        _here[plugin.module] = plugin.sha256


def _value(_: None, value: Any) -> Any:
    return value
