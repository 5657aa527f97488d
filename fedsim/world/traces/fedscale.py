"""FedScale's two pickles: ``client_device_capacity`` and ``client_behave_trace``, read as plain values alone.

The first maps ids to ``computation``, milliseconds for an example, and ``communication``, kilobits in a second. Tokens are
unknown to it, so speeds are taken relative to their median (ours). The second maps ids to ``active`` and ``inactive``, the
seconds at which a device comes and goes, and ``finish_time``, the end of its trace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import DataError, shown
from fedsim.world.traces.plain_pickle import read_plain_pickle
from fedsim.world.traces.recorded import Owners, RecordedDevices, RecordedTraces, traces_of


def read_capacities(path: Path) -> RecordedDevices:
    """Read ``client_device_capacity``."""
    devices = _devices(path)
    speeds, links = [], []
    for name, device in devices.items():
        computation, communication = (_above_0(path, name, device, key) for key in ("computation", "communication"))
        speeds.append(1.0 / computation)
        links.append(communication / 1000.0)
    speed_D, link_D = np.array(speeds), np.array(links)
    columns = {"downlink_megabits": link_D, "uplink_megabits": link_D}
    return RecordedDevices(Owners(path, list(devices)), columns, speed_D / np.median(speed_D))


def read_behaviour(path: Path) -> RecordedTraces:
    """Read ``client_behave_trace``."""
    devices = _devices(path)
    ids = list(devices)
    counts, starts, ends, periods = [], [], [], []
    for name, device in devices.items():
        comes, goes = (_list(path, name, device, key) for key in ("active", "inactive"))
        if len(comes) != len(goes):
            raise DataError(
                f"{path}: device {name}: active has {len(comes)} entries, inactive has {len(goes)}; they must be pairs"
            )
        periods.append(_above_0(path, name, device, "finish_time"))
        counts.append(len(comes))
        starts += comes
        ends += goes
    if not starts:
        raise DataError(f"{path} has no interval in which a device is in reach")
    owner_Z = np.repeat(np.arange(len(ids)), counts)
    lists = owner_Z, np.array(starts, dtype=np.float64), np.array(ends, dtype=np.float64), np.array(periods)
    return traces_of(Owners(path, ids), *lists, lambda row: f"device {ids[int(owner_Z[row])]}: active")


def _devices(path: Path) -> dict[int | str, dict[str, Any]]:
    devices = read_plain_pickle(path)
    if not isinstance(devices, dict) or not devices:
        raise DataError(f"{path}: must map ids to devices, as FedScale's files do, and hold some")
    for name, device in devices.items():
        if not isinstance(name, int | str) or not isinstance(device, dict):
            raise DataError(f"{path}: device {shown(name)}: must be a group of fields, not {shown(device)}")
    return devices


def _field(path: Path, name: int | str, device: dict[str, Any], key: str) -> Any:
    if key not in device:
        raise DataError(f"{path}: device {name}: the field {key} is missing")
    return device[key]


def _above_0(path: Path, name: int | str, device: dict[str, Any], key: str) -> float:
    value = _field(path, name, device, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise DataError(f"{path}: device {name}: {key} is {shown(value)}, but must be a number above 0")
    return float(value)


def _list(path: Path, name: int | str, device: dict[str, Any], key: str) -> list[float]:
    values = _field(path, name, device, key)
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        raise DataError(f"{path}: device {name}: {key} must be a list of seconds, not {shown(values)}")
    return values
