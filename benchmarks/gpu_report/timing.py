"""Seconds and memory of the sides of a cell, on a GPU as on a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.measure import in_turn


@dataclass(frozen=True)
class Measured:
    """What a side took."""

    seconds: tuple[float, ...]
    """Of each run after the first, until its results are on the host and the GPU has nothing left to do."""
    added_bytes: int | None
    """Most that its work added to the tensors on the GPU, in any run; None on a CPU."""
    first_seconds: float
    """Of the first run, with warm-up, and compilation where there is one."""


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(sides: Mapping[str, Callable[[], object]], device: torch.device, runs: int) -> dict[str, Measured]:
    """Run every side once to warm up, and then ``runs`` times in turn."""
    first, added = {}, dict.fromkeys(sides, 0)

    def timed(name: str) -> float:
        wait(device)
        held = _start_counting(device)
        started = time.perf_counter()
        sides[name]()
        wait(device)
        seconds = time.perf_counter() - started
        if device.type == "cuda":
            added[name] = max(added[name], torch.cuda.max_memory_allocated(device) - held)
        return seconds

    for name in sides:
        first[name] = timed(name)
        timed(name)  # what only a second pass allocates or settles
    taken = in_turn({name: lambda name=name: timed(name) for name in sides}, runs)
    on_gpu = device.type == "cuda"
    return {
        name: Measured(tuple(seconds), added[name] if on_gpu else None, first[name]) for name, seconds in taken.items()
    }


def _start_counting(device: torch.device) -> int:
    """Begin a new peak; return the bytes of the tensors that are there."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    held: int = torch.cuda.memory_allocated(device)
    return held
