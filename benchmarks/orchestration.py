"""Orchestration alone: clients receive a float32 vector, add one and return it.

Nothing is trained. The rounds of fedsim are those of any run (:mod:`benchmarks.carrying`), in this process and on Ray actors.
They are compared with two single-threaded loops without a framework, which do the same mathematics client by client:

* the copy limit: every client's vector is read and written, and added with its weight to a float64 sum, in blocks that stay
  in the processor's cache and with no new memory. It is what the machine's memory allows one thread;
* the plain loop, written naively: ``total += weight * (vector + 1).astype(float64)``.

Figures are client updates per second, ratios are to the copy limit. Executors are started once per case, those with actors on
one Ray; a measurement repeats rounds for at least 0.2 s, and at the end each side's vector proves that its rounds were done.

    python -m benchmarks.orchestration [--json FILE] [--runs 5] [--clients 100,1000] [--elements 25000,1000000] [--actors 1,2]
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.carrying import AddOneSpec, Carrying
from benchmarks.measure import RUNS, Row, compare, in_turn, numbers, present
from benchmarks.peers.fedsim_side import group_size
from clients.training.sums import BLOCK
from fedsim.configuration.schema import build_config
from fedsim.executors.base import Executor
from fedsim.executors.make import make_executor

COPY_LIMIT, PLAIN_LOOP, LOCAL = "copy limit", "plain loop", "fedsim, this process"
MEASURED_SECONDS = 0.2
"""Minimum duration of a measurement, in whole rounds."""
MakeExecutor = Callable[[], Executor]


class Loop(ABC):
    """Rounds of adding one, without a framework."""

    def __init__(self, clients: int, elements: int) -> None:
        self.vector_F = np.zeros(elements, np.float32)
        self.rounds = 0
        self._weights: list[int] = AddOneSpec.of(clients, elements).sizes_N.tolist()

    def round(self) -> None:
        """Let every client add one, and average."""
        self.vector_F = (self._total() / sum(self._weights)).astype(np.float32)
        self.rounds += 1

    def check(self) -> None:
        """Raise unless every round added one."""
        if not np.array_equal(self.vector_F, np.full(len(self.vector_F), self.rounds)):
            raise AssertionError(f"after {self.rounds} rounds the vector holds {self.vector_F[:3]} ...")

    @abstractmethod
    def _total(self) -> np.ndarray:
        """Return the float64 sum of the clients' vectors, each by its weight."""


class CopyLimit(Loop):
    """Sum in blocks, in preallocated memory."""

    def __init__(self, clients: int, elements: int) -> None:
        super().__init__(clients, elements)
        self._local_F = np.empty_like(self.vector_F)
        self._total_F = np.empty(elements)
        self._scratch = np.empty(min(BLOCK, elements))

    def _total(self) -> np.ndarray:
        self._total_F.fill(0.0)
        for weight in self._weights:
            for start in range(0, len(self.vector_F), BLOCK):
                block = slice(start, start + BLOCK)
                local = np.add(self.vector_F[block], np.float32(1.0), out=self._local_F[block])
                term, total = self._scratch[: len(local)], self._total_F[block]
                np.copyto(term, local)
                np.multiply(term, weight, out=term)
                np.add(total, term, out=total)
        return self._total_F


class PlainLoop(Loop):
    """Sum naively."""

    def _total(self) -> np.ndarray:
        total_F = np.zeros(len(self.vector_F))
        for weight in self._weights:
            local_F = self.vector_F + np.float32(1.0)
            total_F += weight * local_F.astype(np.float64)
        return total_F


def measure(clients: int, elements: int, executors: Mapping[str, MakeExecutor], runs: int) -> list[Row]:
    """Return the rows of one case.

    Parameters
    ----------
    elements
        Length of the vector, a multiple of 200.
    executors
        By name, a function that makes an executor that is not started yet.

    Raises
    ------
    AssertionError
        If a side has not done the rounds that were counted.
    """
    with ExitStack() as stack:
        sides: dict[str, Loop | Carrying] = {
            COPY_LIMIT: CopyLimit(clients, elements),
            PLAIN_LOOP: PlainLoop(clients, elements),
        }
        for name, make in executors.items():
            carrying = Carrying(make(), clients, elements, group_size=group_size(clients))
            stack.callback(carrying.close)
            carrying.start()
            sides[name] = carrying
        for side in sides.values():
            side.round()
        figures = in_turn({name: partial(_rate, side, clients) for name, side in sides.items()}, runs)
        for side in sides.values():
            side.check()
    prefix = f"{clients:,} clients x {elements:,} elements: "
    return compare("orchestration", figures, "client updates/s", COPY_LIMIT, prefix)


def _rate(side: Loop | Carrying, clients: int) -> float:
    """Repeat rounds for some time; return client updates a second."""
    before, started, elapsed = side.rounds, time.perf_counter(), 0.0
    while elapsed < MEASURED_SECONDS:
        side.round()
        elapsed = time.perf_counter() - started
    return clients * (side.rounds - before) / elapsed


def fedsim_executors(clients: int, actors: Sequence[int]) -> dict[str, MakeExecutor]:
    """Return the executors that are compared: this process, and each number of actors, to be started in this order.

    The first on Ray starts a local cluster with room for all, and the others join it: the actors of all sides exist at
    once, and those not being measured wait.
    """
    made: dict[str, MakeExecutor] = {LOCAL: partial(_executor, clients, {"executor": "local"})}
    for number, count in enumerate(actors):
        own = {"address": "auto"} if number else {"num_cpus": sum(actors)}
        name = f"fedsim, {count} actor{'s' * (count > 1)}"
        made[name] = partial(_executor, clients, {"executor": "ray", "ray": {"actors": count, **own}})
    return made


def _executor(clients: int, section: Mapping[str, object]) -> Executor:
    config = build_config(
        {
            "partition": {"clients": clients},
            "sampling": {"clients_per_round": clients},
            "client": {"threads": 1},
            **section,
        }
    )
    return make_executor(config, lambda: None, print)


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = RUNS,
    clients: Annotated[str, typer.Option(help="Numbers of clients, with commas.")] = "100,1000",
    elements: Annotated[str, typer.Option(help="Lengths of the vector, multiples of 200.")] = "25000,1000000",
    actors: Annotated[str, typer.Option(help="Numbers of actors.")] = "1,2",
) -> None:
    """Measure, and print the table."""
    populations, lengths, counts = numbers(clients), numbers(elements, 200), numbers(actors)
    rows = [
        row
        for population, length in itertools.product(populations, lengths)
        for row in measure(population, length, fedsim_executors(population, counts), runs)
    ]
    present(rows, records_file, "orchestration without training")


if __name__ == "__main__":
    typer.run(main)
