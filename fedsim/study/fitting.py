"""How many runs of a study this machine's memory holds at a time."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from clients.backbone.held_weights import key_of
from fedsim.core.errors import FedsimError
from fedsim.data.config import DataConfig
from fedsim.data.sources import load_dataset
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


def run_bytes(cells: Sequence[Cell], *, counted: bool = True) -> int | None:
    """Return the memory of the largest run beside its weights; None if a model is only known once it is fetched.

    Parameters
    ----------
    counted
        Whether examples are counted, for which they are read; if not, a frozen-layer cache counts as large as it may grow.
    """
    found = [_memory(config, counted) for config in _unlike(cells)]
    known = [memory.actor + memory.caches for memory in found if memory is not None]
    return max(known) if len(known) == len(found) else None


def fitting(cells: Sequence[Cell], note: Callable[[str], None]) -> int:
    """Return how many runs this machine's memory holds at a time; all of them if they go to a cluster.

    Parameters
    ----------
    note
        Called with a message where memory allows fewer than the processors.
    """
    config, needed = cells[0].config, run_bytes(cells, counted=False)
    free = this_machine().memory_free_bytes if config.ray.address is None else None
    if free is None or needed is None:
        return len(cells)
    wanted, room = min(len(cells), config.ray.num_cpus or os.cpu_count() or 1), free - stored_bytes(cells)
    if room // needed < wanted:
        needed = run_bytes(cells) or needed
    fits = max(room // needed, 1)
    if fits < wanted:
        note(f"memory holds {fits} runs at a time, of about {needed / 1e9:.1f} GB each")
    return fits


def _unlike(cells: Sequence[Cell]) -> list[Config]:
    """Return one config of each arm on each data set: seeds need the same memory."""
    return list({(cell.dataset, cell.arm): cell.config for cell in cells}.values())


def _memory(config: Config, counted: bool = False) -> MemoryEstimate | None:
    shape = model_shape(config.model)
    if shape is None:
        return None
    memory = estimate_memory(config, shape, None, 2)
    if not counted or not memory.caches:
        return memory
    examples = _num_examples(config.data.model_dump_json(), config.partition.column)
    return memory if examples is None else estimate_memory(config, shape, examples, 2)


@functools.cache
def _num_examples(data: str, column: str | None) -> int | None:
    """Return how many examples a section ``data`` leaves, at most; None if they are not here, or damaged."""
    config = DataConfig.model_validate_json(data)
    if config.train_examples is not None and config.validation_examples is not None:
        return config.train_examples + config.validation_examples
    if config.effective_source == "hub":
        return None
    try:
        dataset = load_dataset(config, 0, column)
    except FedsimError:
        return None
    return len(dataset.train) + len(dataset.validation)
