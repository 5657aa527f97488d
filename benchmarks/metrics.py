"""What a run's metrics cost: rounds of adding one (W3) with and without them, on one Ray whose agent exports them.

Both sides have actors of their own and take turns. Figures are the wall time of a round, the CPU time of the driver and its
actors in a round, which hardly depends on what else runs on the machine, and the CPU time of showing a recorded round itself.
Ratios are to the rounds without metrics. The agent's own work is no part of a round.

    python -m benchmarks.metrics [--json FILE] [--runs 5] [--clients 100,1000] [--elements 25000]
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.carrying import Carrying
from benchmarks.measure import RUNS, Row, compare, in_turn, numbers, present
from benchmarks.peers.fedsim_side import group_size
from fedsim.configuration.schema import build_config
from fedsim.executors.make import make_executor
from fedsim.records.round_record import RoundRecord

WITHOUT, WITH = "without metrics", "with metrics"
ACTORS = 2
MEASURED_SECONDS = 0.5
"""Minimum duration of a measurement, in whole rounds."""
_TIMES = 1000


def a_record(round: int) -> RoundRecord:
    """Return a record of a round with a number in every field."""
    return RoundRecord(**{field.name: 1 for field in fields(RoundRecord)} | {"round": round, "actors_replaced": 0})


class Side:
    """Rounds of adding one on actors of their own; each is shown when it is done.

    Parameters
    ----------
    ray
        The section ``ray``.
    """

    def __init__(self, clients: int, elements: int, ray: Mapping[str, object]) -> None:
        section = {"actors": ACTORS, **ray}
        config = build_config({"partition": {"clients": clients}, "client": {"threads": 1}, "ray": section})
        self.executor = make_executor(config, lambda: None, print)
        self._carrying = Carrying(self.executor, clients, elements, group_size(clients))
        workers = self._carrying.start()
        self._processes = [psutil.Process(worker.pid) for worker in workers]
        self._round()
        self.cpu_seconds: list[float] = []
        """Of a round, measurement by measurement."""

    def measure(self) -> float:
        """Do rounds; note the CPU seconds of one and return its wall seconds."""
        rounds, started, cpu = 0, time.perf_counter(), self._cpu()
        while time.perf_counter() - started < MEASURED_SECONDS:
            self._round()
            rounds += 1
        passed = time.perf_counter() - started
        self.cpu_seconds.append((self._cpu() - cpu) / rounds)
        return passed / rounds

    def _round(self) -> None:
        self._carrying.round()
        self.executor.recorded(a_record(self._carrying.rounds))

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return time.process_time() + sum(each.user + each.system for each in times)

    def shown_seconds(self) -> float:
        """Return the CPU seconds of showing a recorded round."""
        record, started = a_record(self._carrying.rounds), time.thread_time()
        for _ in range(_TIMES):
            self.executor.recorded(record)
        return (time.thread_time() - started) / _TIMES

    def close(self) -> None:
        """Stop actors and server.

        Raises
        ------
        AssertionError
            If a client did not do its work.
        """
        try:
            self._carrying.check()
        finally:
            self._carrying.close()


def measure(clients: int, elements: int, runs: int) -> list[Row]:
    """Return the rows of one size."""
    first = Side(clients, elements, {"num_cpus": 2 * ACTORS, "metrics": True})  # starts the Ray of both
    second = Side(clients, elements, {"address": "auto", "metrics": False})
    sides = {WITHOUT: second, WITH: first}
    try:
        walls = in_turn({name: side.measure for name, side in sides.items()}, runs)
        shown = first.shown_seconds()
    finally:
        second.close()
        first.close()
    prefix = f"W3 {clients:,} clients x {elements:,} elements: "
    milliseconds = {name: [1e3 * value for value in values] for name, values in walls.items()}
    cpu = {f"{name}, CPU": [1e3 * value for value in side.cpu_seconds] for name, side in sides.items()}
    rows = compare("metrics", milliseconds, "ms a round", WITHOUT, prefix)
    rows += compare("metrics", cpu, "ms of CPU a round", f"{WITHOUT}, CPU", prefix)
    return [*rows, Row("metrics", f"{prefix}showing a recorded round", 1e3 * shown, "ms of CPU a round", runs=_TIMES)]


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = RUNS,
    clients: Annotated[str, typer.Option(help="Numbers of clients, with commas.")] = "100,1000",
    elements: Annotated[str, typer.Option(help="Lengths of the vector, multiples of 200.")] = "25000",
) -> None:
    """Measure, and print the table."""
    sizes = itertools.product(numbers(clients), numbers(elements, 200))
    present([row for size in sizes for row in measure(*size, runs)], records_file, "metrics of a run")


if __name__ == "__main__":
    typer.run(main)
