"""Traces of FLHetBench: a JSON list of devices with ``isSuccess``, ``trace_start``, ``trace_end`` and ``ready_time``.

``ready_time`` holds ``[from, until]`` in seconds, on the clock of ``trace_start``. Devices without success are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import DataError, shown
from fedsim.world.traces.recorded import Owners, RecordedTraces, traces_of


def read_flhetbench(path: Path) -> RecordedTraces:
    """Read the traces of a file.

    Raises
    ------
    DataError
        Naming the device and the field that cannot be used.
    """
    try:
        devices = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON file ({error})") from None
    if not isinstance(devices, list):
        raise DataError(f"{path}: must be a list of devices, as FLHetBench's are, not {type(devices).__name__}")
    ids: list[int | str] = []
    counts, begins, periods = [], [], []
    edges: list[float] = []
    for number, device in enumerate(devices, 1):
        if not isinstance(device, dict):
            raise DataError(f"{path}: device {number}: must be a group of fields, not {shown(device)}")
        if not _field(path, number, device, "isSuccess"):
            continue
        begin, end = (
            _seconds(path, number, name, _field(path, number, device, name)) for name in ("trace_start", "trace_end")
        )
        if end <= begin:
            raise DataError(
                f"{path}: device {number}: trace_end is {end:g}, but must be more than trace_start, {begin:g}"
            )
        own = _edges(path, number, _field(path, number, device, "ready_time"))
        edges += own
        ids.append(number)
        counts.append(len(own) // 2)
        begins.append(begin)
        periods.append(end - begin)
    if not edges:
        raise DataError(f"{path} has no interval in which a device is in reach")
    owner_Z = np.repeat(np.arange(len(ids)), counts)
    edges_Z2 = np.array(edges, dtype=np.float64).reshape(-1, 2) - np.array(begins)[owner_Z, None]
    lists = owner_Z, edges_Z2[:, 0], edges_Z2[:, 1], np.array(periods)
    return traces_of(Owners(path, ids), *lists, lambda row: f"device {ids[int(owner_Z[row])]}: ready_time")


def _edges(path: Path, number: int, ready: Any) -> list[float]:
    """Return the ends of a device's intervals, one after the other."""
    if not isinstance(ready, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in ready):
        raise DataError(f"{path}: device {number}: ready_time must be a list of [from, until], not {shown(ready)}")
    edges = [value for pair in ready for value in pair]
    if not set(map(type, edges)) <= {int, float}:
        wrong = next(value for value in edges if type(value) not in (int, float))
        _seconds(path, number, "ready_time", wrong)
    return edges


def _field(path: Path, number: int, device: dict[str, Any], name: str) -> Any:
    if name not in device:
        raise DataError(f"{path}: device {number}: the field {name} is missing")
    return device[name]


def _seconds(path: Path, number: int, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{path}: device {number}: {name} is {shown(value)}, but must be a number of seconds")
    return float(value)
