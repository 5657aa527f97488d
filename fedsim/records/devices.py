"""The simulated devices of a run, in ``devices.parquet``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.records.columns import DEVICE_COLUMNS
from fedsim.records.events import replaced
from fedsim.world.devices import MEGABIT, Devices
from fedsim.world.enough import GIGABYTE


def write_devices(path: Path, devices: Devices) -> None:
    """Write the table atomically: what each client's device can do, and whether the client can be drawn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    own, clients = devices.hardware, len(devices.sizes_N)
    holding_N, small_N = devices.sizes_N > 0, np.isin(np.arange(clients), devices.too_small)
    drawable_N = np.select([~holding_N, small_N, ~devices.able_N], ["examples", "memory", "reach"], "yes")
    columns = {
        "client": np.arange(clients),
        "tokens_per_second": own.tokens_per_second_N,
        "downlink_megabits": own.downlink_bytes_N / MEGABIT,
        "uplink_megabits": own.uplink_bytes_N / MEGABIT,
        "latency_seconds": own.latency_seconds_N,
        "gigabytes": own.memory_bytes_N / GIGABYTE,
        "visit_seconds": devices.seconds_N(0),
        "drawable": drawable_N.tolist(),
    }
    table = {name: pa.array(columns[name], pa.type_for_alias(kind)) for name, kind in DEVICE_COLUMNS.items()}
    with replaced(path) as file:
        pq.write_table(pa.table(table), file)
