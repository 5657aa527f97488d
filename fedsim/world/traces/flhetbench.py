"""Traces of FLHetBench: a JSON list of devices with ``isSuccess``, ``trace_start``, ``trace_end`` and ``ready_time``.

``ready_time`` holds ``[from, until]`` in seconds, on the clock of ``trace_start``. Devices without success are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
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
    ready, begins, periods = [], [], []
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
        ready.append(_field(path, number, device, "ready_time"))
        ids.append(number)
        begins.append(begin)
        periods.append(end - begin)
    edges = _all_edges(path, ids, ready)
    counts = list(map(len, ready))
    if not edges:
        raise DataError(f"{path} has no interval in which a device is in reach")
    owner_Z = np.repeat(np.arange(len(ids)), counts)
    edges_Z2 = np.array(edges, dtype=np.float64).reshape(-1, 2) - np.array(begins)[owner_Z, None]
    lists = owner_Z, edges_Z2[:, 0], edges_Z2[:, 1], np.array(periods)
    return traces_of(Owners(path, ids), *lists, lambda row: f"device {ids[int(owner_Z[row])]}: ready_time")


def _all_edges(path: Path, ids: Sequence[int | str], ready: Sequence[Any]) -> list[float]:
    """Return the ends of all devices' intervals, one after the other."""
    if set(map(type, ready)) <= {list}:
        pairs = list(chain.from_iterable(ready))
        if set(map(type, pairs)) <= {list} and set(map(len, pairs)) <= {2}:
            edges = list(chain.from_iterable(pairs))
            if set(map(type, edges)) <= {int, float}:
                return edges
    for number, own in zip(ids, ready, strict=True):
        _refuse_pairs(path, int(number), own)
    raise AssertionError("one of them is no list of pairs of numbers")


def _refuse_pairs(path: Path, number: int, ready: Any) -> None:
    """Refuse a device whose intervals are not pairs of numbers."""
    if not isinstance(ready, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in ready):
        raise DataError(f"{path}: device {number}: ready_time must be a list of [from, until], not {shown(ready)}")
    for value in chain.from_iterable(ready):
        _seconds(path, number, "ready_time", value)


def _field(path: Path, number: int, device: dict[str, Any], name: str) -> Any:
    if name not in device:
        raise DataError(f"{path}: device {number}: the field {name} is missing")
    return device[name]


def _seconds(path: Path, number: int, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{path}: device {number}: {name} is {shown(value)}, but must be a number of seconds")
    return float(value)
