"""How many runs of a study this machine's memory holds at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from clients.backbone.held_weights import key_of
from fedsim.planning.machine import this_machine
from fedsim.planning.memory import MemoryEstimate, estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.study.cells import Cell

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def stored_bytes(cells: Sequence[Cell]) -> int:
    """Return an upper bound on the bytes of all models' weights, which all runs share."""
    by_model = {key_of(cell.config.model): cell.config for cell in cells}
    found = [_memory(config) for config in by_model.values()]
    return sum(memory.weights for memory in found if memory is not None)


def run_bytes(cells: Sequence[Cell]) -> int | None:
    """Return the memory of the largest run beside its weights; None if a model is only known once it is fetched."""
    found = [_memory(config) for config in _unlike(cells)]
    known = [memory.actor + memory.caches for memory in found if memory is not None]
    return max(known) if len(known) == len(found) else None


def fitting(cells: Sequence[Cell], note: Callable[[str], None]) -> int:
    """Return how many runs this machine's memory holds at a time; all of them if they go to a cluster.

    Parameters
    ----------
    note
        Called with a message where memory allows fewer than the processors.
    """
    config, needed = cells[0].config, run_bytes(cells)
    free = this_machine().memory_free_bytes if config.ray.address is None else None
    if free is None or needed is None:
        return len(cells)
    fits = max((free - stored_bytes(cells)) // needed, 1)
    if fits < min(len(cells), config.ray.num_cpus or os.cpu_count() or 1):
        note(f"memory holds {fits} runs at a time, of about {needed / 1e9:.1f} GB each")
    return fits


def _unlike(cells: Sequence[Cell]) -> list[Config]:
    """Return one config of each arm on each data set: seeds need the same memory."""
    return list({(cell.dataset, cell.arm): cell.config for cell in cells}.values())


def _memory(config: Config) -> MemoryEstimate | None:
    shape = model_shape(config.model)
    return None if shape is None else estimate_memory(config, shape, None, 2)
