"""The ray section of runs that share actors: one for all, without keys that are for the actors of a single run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsim.core.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.executors.config import RayConfig
    from fedsim.study.cells import Cell

_SINGLY = {
    "group_timeout_seconds": "limits a work group on actors of a single run",
    "round_timeout_seconds": "limits a round on actors of a single run",
    "metrics": "exports metrics of actors of a single run",
}
"""What keys do that have no meaning where each run is done by one actor, as a whole."""
_REMEDY = "--at-once 1 does one run after another, each on actors of its own"


def shared_ray(cells: Sequence[Cell]) -> RayConfig:
    """Return the section by which actors are started that do all of these runs.

    Raises
    ------
    ConfigError
        If runs have different ones, or a key that nothing would come of.
    """
    first = cells[0].config.ray
    for key in type(first).model_fields:
        for cell in cells:
            given, wanted = getattr(cell.config.ray, key), getattr(first, key)
            if key != "actors" and given != wanted:
                raise ConfigError(
                    f"ray.{key} is {json.dumps(wanted)} for {cells[0]} and {json.dumps(given)} for {cell}, but all runs of a "
                    f"study share their actors: give one value in the base; {_REMEDY}"
                )
    for key, what in _SINGLY.items():
        value = getattr(first, key)
        if value != type(first).model_fields[key].default and value is not False:
            raise ConfigError(
                f"ray.{key}={json.dumps(value)} {what}, but several runs at a time have one actor each; {_REMEDY}"
            )
    return first.model_copy(update={"actors": "pool"})
