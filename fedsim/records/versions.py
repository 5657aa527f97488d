"""The versions that a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

from fedsim import __version__
from fedsim.core.plugins import installed_versions

_PACKAGES = ("ray", "torch", "transformers", "datasets", "numpy", "pyarrow", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"fedsim": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return {**found, **installed_versions()}
