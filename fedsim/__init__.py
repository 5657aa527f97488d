"""fedsim: a Ray-native simulator of federated prompt tuning.

>>> import fedsim                                                    # doctest: +SKIP
>>> summary = fedsim.run("configs/quickstart.yaml", ["rounds=5"])    # doctest: +SKIP
>>> model = fedsim.load_adapter(summary["folder"])                   # doctest: +SKIP

Names are imported on first use: ``import fedsim`` imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedsim.core import siblings

__version__ = "0.1.0"
__all__ = ["compare", "load_adapter", "load_plugin", "load_prompt", "register", "run"]

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config as Config
    from fedsim.core.errors import FedsimError as FedsimError
    from fedsim.core.plugins import load_plugin as load_plugin
    from fedsim.core.plugins import register as register
    from fedsim.executors import tune as tune
    from fedsim.prompts.prompted_model import load_adapter as load_adapter
    from fedsim.prompts.prompted_model import load_prompt as load_prompt
    from fedsim.records.recorded_run import load_run as load_run
    from fedsim.simulation.callbacks import Callback as Callback
    from fedsim.simulation.callbacks import EarlyStop as EarlyStop
    from fedsim.simulation.run import Run as Run
    from fedsim.simulation.run import run as run
    from fedsim.study.command import compare as compare

siblings.find_first()

_HOMES = {
    "Callback": "fedsim.simulation.callbacks",
    "Config": "fedsim.configuration.schema",
    "EarlyStop": "fedsim.simulation.callbacks",
    "FedsimError": "fedsim.core.errors",
    "Run": "fedsim.simulation.run",
    "compare": "fedsim.study.command",
    "load_adapter": "fedsim.prompts.prompted_model",
    "load_plugin": "fedsim.core.plugins",
    "load_prompt": "fedsim.prompts.prompted_model",
    "load_run": "fedsim.records.recorded_run",
    "register": "fedsim.core.plugins",
    "run": "fedsim.simulation.run",
}
"""Module of each public name of ``fedsim``."""
_MODULES = {"tune": "fedsim.executors.tune"}
"""Modules that are reached by a shorter name: ``fedsim.tune.trainable``, ``fedsim.tune.resources``."""
__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = globals()[name] = importlib.import_module(_MODULES[name])
    elif name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
