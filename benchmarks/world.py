"""What the virtual clock costs: rounds with and without devices, and the start of a run with many recorded devices.

Rounds are those of :mod:`benchmarks.orchestration`, in which clients add one and nothing is trained. All sides draw the same
number of clients and do the same work; those with devices ask who is in reach and when each result arrives. What planning
alone takes is measured apart, over many rounds: it is far below the noise of whole rounds.

Starts are of real runs of one round in this process, from config to result, on the embedded corpus: 100 clients with 100
devices of a trace file, and with 10,000 of them, of which each client takes one. Both sides draw two clients for one step.

Everything happens in this process, so figures are its CPU seconds: what else runs on the machine does not count. Sides take
turns, and a ratio is the median over pairs of measurements made one after the other, with its quartiles.

    python -m benchmarks.world [--json FILE] [--runs 9] [--clients 1000] [--elements 1000000] [--intervals 12]
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
from benchmarks.measure import Row, compare, in_turn, present
from benchmarks.orchestration import LOCAL, MEASURED_SECONDS, fedsim_executors
from benchmarks.peers.fedsim_side import group_size
from fedsim import Config, Run
from fedsim.simulation.round import Draw
from fedsim.world.config import AvailabilityConfig, DevicesConfig
from fedsim.world.cost import VisitCost
from fedsim.world.devices import Devices
from server.config import SamplingConfig

PLAIN = "no devices"
KINDS = {PLAIN: None, "devices, always in reach": "always", "devices, by day": "diurnal"}
DAY_SECONDS = 86_400.0
PLANNED = 20
"""Rounds whose plans are measured at a time."""
RUNS = 9


def devices(clients: int, elements: int, kind: str) -> Devices:
    """Return simulated devices of clients that add one."""
    sizes_N = AddOneSpec.of(clients, elements).sizes_N
    cost = VisitCost(sizes_N.astype(float), sizes_N.astype(float), (4 * elements,), (4 * elements,), 0.0)
    return Devices.of(DevicesConfig(availability=AvailabilityConfig(kind=kind)), 0, cost, sizes_N)


def rounds(clients: int, elements: int, runs: int) -> list[Row]:
    """Return CPU seconds of a round without devices, with devices always in reach, and with those of phones."""
    sides: dict[str, Carrying] = {}
    for name, kind in KINDS.items():
        made = None if kind is None else devices(clients, elements, kind)
        executor = fedsim_executors(clients, [1])[LOCAL]()
        sides[name] = Carrying(executor, clients, elements, group_size(clients), devices=made)
        sides[name].start()
        sides[name].round()
    figures = in_turn({name: partial(_cpu_seconds, side) for name, side in sides.items()}, runs)
    for side in sides.values():
        side.check()
        side.close()
    return compare("clock", figures, "CPU s a round", PLAIN, f"{clients:,} clients x {elements:,} elements: ")


def plans(clients: int, elements: int, runs: int) -> list[Row]:
    """Return CPU seconds to plan a round: who takes part, and when."""
    sizes_N = AddOneSpec.of(clients, elements).sizes_N
    sides: dict[str, Callable[[], float]] = {}
    for name, kind in KINDS.items():
        made = None if kind is None else devices(clients, elements, kind)
        sampling = SamplingConfig(clients_per_round=clients)
        sides[name] = partial(_plan, Draw(sampling, 0, group_size(clients), sizes_N, sizes_N, devices=made), [0])
        sides[name]()
    figures = in_turn(sides, runs)
    return compare("plan", figures, "CPU s a plan", PLAIN, f"plan of a round of {clients:,} clients: ")


def _plan(draw: Draw, done: list[int]) -> float:
    """Plan the next rounds; return the CPU seconds of one."""
    started = time.process_time()
    for number in range(done[0], done[0] + PLANNED):
        draw.step(number)
    done[0] += PLANNED
    return (time.process_time() - started) / PLANNED


def _cpu_seconds(side: Carrying) -> float:
    """Repeat rounds for some time; return the CPU seconds of one."""
    before, started, elapsed = side.rounds, time.process_time(), 0.0
    while elapsed < MEASURED_SECONDS:
        side.round()
        elapsed = time.process_time() - started
    return elapsed / (side.rounds - before)


def starts(intervals: int, runs: int) -> list[Row]:
    """Return CPU seconds of a run of one round, with traces of 100 and of 10,000 devices."""
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], float]] = {}
        for number in (100, 10_000):
            path = Path(folder) / f"traces-{number}.csv"
            write_traces(path, number, intervals)
            sides[f"{number:,} devices"] = partial(_run, path, Path(folder))
        for side in sides.values():
            side()
        figures = in_turn(sides, runs)
    return compare("start", figures, "CPU s a run of one round", "100 devices", f"{intervals} intervals a device: ")


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
        "sampling": {"clients_per_round": 2},
        "client": {"steps": 1},
        "world": {"devices": {"availability": {"kind": "trace", "file": str(path)}}},
        "tracking": {"plots": False},
        "cache": {"enabled": False},
    }
    started = time.process_time()
    with Run(Config(**values), progress=False) as run:
        for _ in run:
            pass
    return time.process_time() - started


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = RUNS,
    clients: Annotated[int, typer.Option(help="Clients, all of which take part in a round.")] = 1000,
    elements: Annotated[int, typer.Option(help="Length of the vector, a multiple of 200.")] = 1_000_000,
    intervals: Annotated[int, typer.Option(help="Intervals of a recorded device.")] = 12,
) -> None:
    """Measure, and print the tables."""
    rows = [*rounds(clients, elements, runs), *plans(clients, elements, runs), *starts(intervals, runs)]
    present(rows, records_file, "the virtual clock")


if __name__ == "__main__":
    typer.run(main)
