"""The driver's own time, in rounds in which clients only add one: per work group, and per client update.

Figures are CPU time of the driver process, so they hardly depend on what else runs on the machine: of its main thread, which
draws, cuts, sends calls, takes what they return and has sums folded, and of all its threads, with those of Ray. Measured are:

* ``--actors``: 1,000 clients a round on actors that are spread over three nodes, each with its own raylet and object store
  (:class:`benchmarks.cluster.Nodes`). Ratios are to the fewest actors.
* ``--registered`` and ``--cohort``: registered clients and clients of a round, on one node. Ratios are to the first row:
  1 where neither costs a client update anything.

    python -m benchmarks.driver [--json FILE] [--runs 5] [--actors 2,4,8] [--registered 1000,10000] [--cohort 100,1000]
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.carrying import Carrying
from benchmarks.cluster import Nodes
from benchmarks.measure import RUNS, Row, compare, in_turn, numbers, present
from fedsim.configuration.schema import build_config
from fedsim.executors.make import make_executor

ELEMENTS, GROUP_SIZE, COHORT, NODES = 200, 5, 1000, 3
UPDATES = 2000
"""Client updates of a measurement, in whole rounds."""
MAIN, ALL = "main thread", "all threads"


class Driven:
    """Rounds whose driver is timed; started by the constructor.

    Parameters
    ----------
    registered, cohort
        Clients, and how many of them take part in a round.
    ray
        The section ``ray``.
    """

    def __init__(self, registered: int, cohort: int, ray: Mapping[str, object]) -> None:
        config = build_config({"partition": {"clients": registered}, "client": {"threads": 1}, "ray": dict(ray)})
        self._carrying = Carrying(
            make_executor(config, lambda: None, print), registered, ELEMENTS, GROUP_SIZE, cohort_size=cohort
        )
        self.cohort = cohort
        self.groups = -(-cohort // GROUP_SIZE)
        self.seconds: dict[str, list[float]] = {MAIN: [], ALL: []}
        """CPU seconds a round, measurement by measurement."""
        self._carrying.start()
        self._carrying.round()

    def measure(self) -> float:
        """Do rounds; note and return the CPU seconds of a round."""
        rounds = -(-UPDATES // self.cohort)
        started = time.thread_time(), time.process_time()
        for _ in range(rounds):
            self._carrying.round()
        main, every = (time.thread_time() - started[0]) / rounds, (time.process_time() - started[1]) / rounds
        self.seconds[MAIN].append(main)
        self.seconds[ALL].append(every)
        return every

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


def measure(sides: Mapping[str, Driven], runs: int, per: str, prefix: str = "") -> list[Row]:
    """Return the rows of started sides, in milliseconds of CPU time, and close them.

    Parameters
    ----------
    per
        ``group`` or ``client update``.
    """
    try:
        in_turn({name: side.measure for name, side in sides.items()}, runs)
    finally:
        for side in reversed(sides.values()):  # the first one has connected to Ray
            side.close()
    rows = []
    for threads in (MAIN, ALL):
        figures = {
            f"{name}, {threads}": [
                1e3 * seconds / (side.groups if per == "group" else side.cohort) for seconds in side.seconds[threads]
            ]
            for name, side in sides.items()
        }
        rows += compare("driver", figures, f"ms a {per}", next(iter(figures)), prefix)
    return rows


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = RUNS,
    actors: Annotated[str, typer.Option(help="Numbers of actors on three nodes.")] = "2,4,8",
    registered: Annotated[str, typer.Option(help="Numbers of registered clients.")] = "1000,10000",
    cohort: Annotated[str, typer.Option(help="Numbers of clients of a round.")] = "100,1000",
) -> None:
    """Measure, and print both tables."""
    counts, populations, cohorts = numbers(actors), numbers(registered), numbers(cohort)
    with Nodes(NODES, cpus=-(-sum(counts) // NODES) + 1):
        spread = {f"{count} actors": Driven(COHORT, COHORT, {"address": "auto", "actors": count}) for count in counts}
        prefix = f"{COHORT:,} clients a round in groups of {GROUP_SIZE}, {NODES} nodes: "
        rows = measure(spread, runs, "group", prefix)
    points = [(n, k) for n, k in itertools.product(populations, cohorts) if k <= n]
    first = {"num_cpus": len(points)}
    sides = {}
    for number, (n, k) in enumerate(points):
        section = {"actors": 1, **({"address": "auto"} if number else first)}
        sides[f"{n:,} registered, {k:,} a round"] = Driven(n, k, section)
    rows += measure(sides, runs, "client update")
    present(rows, records_file, "CPU time of the driver")


if __name__ == "__main__":
    typer.run(main)
