"""fedsim: a Ray-native simulator of federated prompt tuning.

>>> import fedsim                                                    # doctest: +SKIP
>>> summary = fedsim.run("configs/quickstart.yaml", ["rounds=5"])    # doctest: +SKIP
>>> model = fedsim.load_prompt(summary["folder"])                    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core import siblings

__version__ = "0.1.0"
__all__ = ["load_plugin", "load_prompt", "register", "run"]

if TYPE_CHECKING:
    from fedsim.core.plugins import load_file as load_plugin
    from fedsim.core.plugins import register
    from fedsim.prompts.prompted_model import PromptedModel


siblings.find_first()


_LAZY = {"register": "fedsim.core.plugins:register", "load_plugin": "fedsim.core.plugins:load_file"}
"""What is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    from fedsim.core.registry import find

    return find(_LAZY[name])


def run(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    quiet: bool = False,
    load: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Run a YAML config with dotted overrides; return the summary. See :func:`fedsim.simulation.runner.run_config`.

    Parameters
    ----------
    load
        Plug-ins to load first; see :func:`fedsim.core.plugins.load_file`.
    """
    from fedsim.configuration.schema import read_config
    from fedsim.core.plugins import load_files
    from fedsim.simulation.runner import run_config

    load_files(load)
    return run_config(read_config(config, overrides), resume=resume, quiet=quiet)


def load_prompt(
    path: str | Path, model: str | None = None, device: str = "cpu", *, trust_remote_code: bool = False
) -> PromptedModel:
    """Load a trained prompt as a usable model. See :func:`fedsim.prompts.prompted_model.load_prompt`."""
    from fedsim.prompts import prompted_model

    return prompted_model.load_prompt(path, model, device, trust_remote_code=trust_remote_code)
