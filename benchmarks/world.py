"""What the virtual clock costs: rounds with and without devices, and the start of a run with many recorded devices.

Rounds are those of :mod:`benchmarks.orchestration`, in which clients add one and nothing is trained. Both sides draw the same
number of clients and do the same work; one asks simulated devices who is in reach and when each result arrives. Ratios are to
the side without devices; the sides take turns.

Starts are of real runs of one round in this process, from config to result, on the embedded corpus: 100 clients with 100
devices of a trace file, and with 10,000 of them, of which each client takes one. Ratios are to the start with 100.

    python -m benchmarks.world [--json FILE] [--runs 5] [--clients 1000] [--elements 1000000] [--intervals 12]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.carrying import AddOneSpec, Carrying
from benchmarks.measure import RUNS, Row, compare, in_turn, present
from benchmarks.orchestration import LOCAL, MEASURED_SECONDS, fedsim_executors
from benchmarks.peers.fedsim_side import group_size
from fedsim import Config, Run
from fedsim.world.config import AvailabilityConfig, DevicesConfig
from fedsim.world.cost import VisitCost
from fedsim.world.devices import Devices

PLAIN = "no devices"
DAY_SECONDS = 86_400.0


def devices(clients: int, elements: int, kind: str) -> Devices:
    """Return simulated devices of clients that add one."""
    sizes_N = AddOneSpec.of(clients, elements).sizes_N
    cost = VisitCost(sizes_N.astype(float), sizes_N.astype(float), (4 * elements,), (4 * elements,), 0.0)
    return Devices.of(DevicesConfig(availability=AvailabilityConfig(kind=kind)), 0, cost, sizes_N)


def rounds(clients: int, elements: int, runs: int) -> list[Row]:
    """Return seconds of a round without devices, with devices always in reach, and with those of phones."""
    sides: dict[str, Carrying] = {}
    kinds = {PLAIN: None, "devices, always in reach": "always", "devices, by day": "diurnal"}
    for name, kind in kinds.items():
        made = None if kind is None else devices(clients, elements, kind)
        executor = fedsim_executors(clients, [1])[LOCAL]()
        sides[name] = Carrying(executor, clients, elements, group_size(clients), devices=made)
        sides[name].start()
        sides[name].round()
    figures = in_turn({name: partial(_seconds, side) for name, side in sides.items()}, runs)
    for side in sides.values():
        side.check()
        side.close()
    return compare("clock", figures, "s a round", PLAIN, f"{clients:,} clients x {elements:,} elements: ")


def _seconds(side: Carrying) -> float:
    """Repeat rounds for some time; return the seconds of one."""
    before, started, elapsed = side.rounds, time.perf_counter(), 0.0
    while elapsed < MEASURED_SECONDS:
        side.round()
        elapsed = time.perf_counter() - started
    return elapsed / (side.rounds - before)


def starts(intervals: int, runs: int) -> list[Row]:
    """Return seconds of a run of one round, with traces of 100 and of 10,000 devices."""
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], float]] = {}
        for number in (100, 10_000):
            path = Path(folder) / f"traces-{number}.csv"
            write_traces(path, number, intervals)
            sides[f"{number:,} devices"] = partial(_run, path, Path(folder))
        for side in sides.values():
            side()
        figures = in_turn(sides, runs)
    return compare("start", figures, "s a run of one round", "100 devices", f"{intervals} intervals a device: ")


def write_traces(path: Path, number: int, intervals: int) -> None:
    """Write when devices are in reach over five days, in our own form."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("device,available_from,available_until\n")
        for device in range(number):
            ends = np.sort(rng.uniform(0.0, 5 * DAY_SECONDS, 2 * intervals)).reshape(-1, 2)
            file.writelines(f"{device},{start:.3f},{end + 1e-3:.3f}\n" for start, end in ends)


def _run(path: Path, folder: Path) -> float:
    values = {
        "executor": "local",
        "rounds": 1,
        "output": str(Path(tempfile.mkdtemp(dir=folder)) / "run"),
        "sampling": {"clients_per_round": 5},
        "world": {"devices": {"availability": {"kind": "trace", "file": str(path)}}},
        "tracking": {"plots": False},
        "cache": {"enabled": False},
    }
    started = time.perf_counter()
    with Run(Config(**values)) as run:
        for _ in run:
            pass
    return time.perf_counter() - started


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = RUNS,
    clients: Annotated[int, typer.Option(help="Clients, all of which take part in a round.")] = 1000,
    elements: Annotated[int, typer.Option(help="Length of the vector, a multiple of 200.")] = 1_000_000,
    intervals: Annotated[int, typer.Option(help="Intervals of a recorded device.")] = 12,
) -> None:
    """Measure, and print the tables."""
    present([*rounds(clients, elements, runs), *starts(intervals, runs)], records_file, "the virtual clock")


if __name__ == "__main__":
    typer.run(main)
