"""What a run's files of devices and traces hold, by their kind."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedsim.core.errors import DataError, listed
from fedsim.world.config import WorldConfig
from fedsim.world.traces.fedscale import read_behaviour, read_capacities
from fedsim.world.traces.flhetbench import read_flhetbench
from fedsim.world.traces.own_form import read_devices, read_traces
from fedsim.world.traces.recorded import RecordedDevices, RecordedTraces

T = TypeVar("T")
_TABLES, _PICKLES = (".csv", ".parquet"), ("", ".pkl", ".pickle")
"""Ends of names."""


@dataclass(frozen=True)
class Recorded:
    """What a run knows of its devices from files."""

    devices: RecordedDevices | None = None
    traces: RecordedTraces | None = None
    contents: tuple[tuple[str, str], ...] = ()
    """SHA-256 of each file, by what it holds."""


def read_recorded(world: WorldConfig) -> Recorded:
    """Read the files that the section names.

    Raises
    ------
    DataError
        With the file, the place in it and what would be right.
    """
    config = world.devices
    if config is None:
        return Recorded()
    contents: list[tuple[str, str]] = []

    def read(name: str, key: str, readers: Mapping[str, Callable[[Path], T]]) -> T:
        path = Path(name).expanduser()
        try:
            contents.append((key, hashlib.sha256(path.read_bytes()).hexdigest()))
        except OSError as error:
            raise DataError(f"cannot read {path}, that world.devices names: {error.strerror or error}") from None
        if path.suffix not in readers:
            raise DataError(f"{path}: its name must end in one of {listed(filter(None, readers))}, or in nothing")
        with _no_collection():
            return readers[path.suffix](path)

    devices = traces = None
    if config.file is not None:
        kinds = dict.fromkeys(_TABLES, read_devices) | dict.fromkeys(_PICKLES, read_capacities)
        devices = read(config.file, "devices", kinds)
    if config.availability.kind == "trace" and config.availability.file is not None:
        readers = dict.fromkeys(_TABLES, read_traces) | dict.fromkeys(_PICKLES, read_behaviour)
        traces = read(config.availability.file, "traces", {**readers, ".json": read_flhetbench})
    return Recorded(devices, traces, tuple(contents))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector, which would scan the many lists that a file becomes again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
