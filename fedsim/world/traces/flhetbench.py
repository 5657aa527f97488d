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
    owner, starts, ends, periods, places = [], [], [], [], []
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
        ready = _field(path, number, device, "ready_time")
        if not isinstance(ready, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in ready):
            raise DataError(f"{path}: device {number}: ready_time must be a list of [from, until], not {shown(ready)}")
        for pair in ready:
            one, two = (_seconds(path, number, "ready_time", value) for value in pair)
            owner.append(len(ids))
            starts.append(one - begin)
            ends.append(two - begin)
            places.append(f"device {number}: ready_time")
        ids.append(number)
        periods.append(end - begin)
    if not owner:
        raise DataError(f"{path} has no interval in which a device is in reach")
    lists = np.array(owner, dtype=np.int64), np.array(starts), np.array(ends), np.array(periods)
    return traces_of(Owners(path, ids), *lists, places)


def _field(path: Path, number: int, device: dict[str, Any], name: str) -> Any:
    if name not in device:
        raise DataError(f"{path}: device {number}: the field {name} is missing")
    return device[name]


def _seconds(path: Path, number: int, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{path}: device {number}: {name} is {shown(value)}, but must be a number of seconds")
    return float(value)
