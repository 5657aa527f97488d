"""Devices and traces of our own form: a CSV or Parquet table; docs/world.md describes its columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedsim.core.errors import DataError
from fedsim.world.traces.recorded import CLIENT, Owners, RecordedDevices, RecordedTraces, traces_of
from fedsim.world.traces.table import read_table

SPEEDS = ("tokens_per_second", "downlink_megabits", "uplink_megabits", "latency_seconds", "gigabytes")
"""Columns of a table of devices, beside ``client`` or ``device``."""
FROM, UNTIL, TRACE = "available_from", "available_until", "trace_seconds"
"""Columns of a table of traces, in seconds."""


_ABOVE_0: tuple[Callable[[np.ndarray], np.ndarray], str] = (lambda values: values > 0, "a number above 0")
_RIGHT = {"latency_seconds": (lambda values: values >= 0, "a number of at least 0")}


def read_devices(path: Path) -> RecordedDevices:
    """Read a table of devices, a row each."""
    table = read_table(path, SPEEDS)
    name, ids, owner_R = table.owners()
    if len(ids) < table.rows:
        again = int(np.flatnonzero(owner_R != np.arange(table.rows))[0])
        first, each = int(np.flatnonzero(owner_R == owner_R[again])[0]), ids[owner_R[again]]
        raise DataError(f"{path}: {table.place(again)}: {name} {each} was given before, {table.place(first)}")
    stated = [column for column in SPEEDS if column in table.columns]
    found = {column: table.numbers(column, *_RIGHT.get(column, _ABOVE_0)) for column in stated}
    return RecordedDevices(Owners(path, ids, name == CLIENT), found)


def read_traces(path: Path) -> RecordedTraces:
    """Read a table of traces, a row for each interval; a row without one is of a device that is never in reach."""
    table = read_table(path, (FROM, UNTIL, TRACE), (FROM, UNTIL))
    name, ids, owner = table.owners()
    starts, ends = (
        table.numbers(column, lambda values: values >= 0, "seconds, at least 0") for column in (FROM, UNTIL)
    )
    half = np.flatnonzero(np.isnan(starts) != np.isnan(ends))
    if len(half):
        row = int(half[0])
        raise table.refuse(
            row, FROM if np.isnan(starts[row]) else UNTIL, "given, or both ends of the interval left empty"
        )
    lengths = table.numbers(TRACE, lambda values: values > 0, "seconds, above 0")
    if np.isnan(starts).all():
        raise DataError(f"{path} has no interval in which a device is in reach")
    periods_D = np.full(len(ids), np.nan)
    periods_D[owner[~np.isnan(lengths)]] = lengths[~np.isnan(lengths)]
    other = np.flatnonzero(~np.isnan(lengths) & (lengths != periods_D[owner]))
    if len(other):
        raise table.refuse(int(other[0]), TRACE, f"the same in all rows of {name} {ids[owner[other[0]]]}")
    periods_D = np.where(np.isnan(periods_D), np.nanmax(ends), periods_D)
    rows = np.flatnonzero(~np.isnan(starts))
    owners = Owners(path, ids, name == CLIENT)
    return traces_of(owners, owner[rows], starts[rows], ends[rows], periods_D, lambda row: table.place(int(rows[row])))
