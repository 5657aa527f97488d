"""Schema of the section ``cache``, and the folder that it means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses

VARIABLE = "FEDSIM_CACHE"
"""Environment variable with the folder, or ``off``, for configs that name none."""
OFF = "off"
WITHOUT = ("cache.folder=null", "cache.max_gigabytes=null", "cache.enabled=false")
"""Overrides that turn the cache off, whatever a config says of it."""


class CacheConfig(Schema):
    """What a run keeps for later ones, in files keyed by content; the same results with and without, in less time."""

    enabled: bool = True
    """Keep tokens, layer scores, the evaluation of the start and the fuse trial's answer, and take them from an earlier run of
    the same content. False, or ``--no-cache``, computes all of it."""
    folder: PathText | None = None
    """Folder for the files; if not given, the environment variable FEDSIM_CACHE (a folder, or off), else fedsim in
    XDG_CACHE_HOME, else ~/.cache/fedsim."""
    max_gigabytes: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    """Most that the files take; those not used for longest are removed first."""

    uses: ClassVar[Uses] = dict.fromkeys(("folder", "max_gigabytes"), (Use("enabled", (True,)),))

    @field_validator("folder")
    @classmethod
    def _local(cls, folder: str | None) -> str | None:
        if folder is not None and "://" in folder:
            raise ValueError(f"{folder!r} is a URL; the cache must be a local folder")
        return folder

    @property
    def path(self) -> Path | None:
        """The folder, or None if nothing is kept."""
        return folder_of(self.folder) if self.enabled else None


def folder_of(given: str | Path | None = None) -> Path | None:
    """Return the cache's folder: the given one, else the environment's; None if that is ``off`` or there is no home."""
    named = given or os.environ.get(VARIABLE)
    if named == OFF and given is None:
        return None
    try:
        if named:
            return Path(named).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "")
        # As the XDG specification says, a relative path is ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fedsim"
    except RuntimeError:  # no home folder
        return None
