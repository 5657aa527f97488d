"""Memory cost of registered clients, and of rounds that only transfer vectors.

* ``fedsim run configs/quickstart.yaml`` on Ray, three rounds of 10 clients, with 100, 1,000 and 10,000 clients registered.
  Data, cohort size, and every client's steps and mini-batches are the same: nothing differs but how many clients there are.
  Figures are the peak resident memory of each process, as ``summary.json`` gives it, and the time from the command to the end
  of round 1; ratios are to 100 clients.
* The add-one federation of :mod:`benchmarks.carrying` with 1,000 clients and 1,000,000 elements, in a separate process: the
  peak, during rounds, of the memory that driver, actors, server and Ray's own processes have for themselves and of the objects
  in the store, above what both are when all is started and no round has begun. Pages of the store that several processes map
  are counted once: as objects.

    python -m benchmarks.memory [--json FILE] [--runs 3] [--clients 100,1000,10000] [--no-carrying]
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import typer

from benchmarks.carrying import Carrying
from benchmarks.measure import Row, compare, in_turn, numbers, present
from benchmarks.orchestration import MakeExecutor, fedsim_executors
from benchmarks.peers.fedsim_side import group_size
from fedsim.data.embedded import generate

RUNS = 3
CARRIED_CLIENTS, CARRIED_ELEMENTS, CARRIED_ROUNDS = 1000, 1_000_000, 5
CONFIG = Path("configs/quickstart.yaml")
BATCH_SIZE = 2
"""Examples of a mini-batch, and the fewest that a client holds."""
SAME_WORK = (
    "rounds=3",
    "partition.kind=iid",
    "partition.holdout_fraction=0.0",  # what is held out would be evaluated at the end, client by client
    "layers.choose=top",  # by score, every registered client would look at its examples first
    "client.steps=4",
    "client.epochs=null",
    f"client.batch_size={BATCH_SIZE}",
    "client.fuse=5",
    "model.trunk_cache.memory_mb=0",
    "ray.actors=1",
    "tracking.plots=false",
)
_POLL_SECONDS = 0.02
_SECONDS = "from the command to the end of round 1"


def write_data(folder: Path, examples: int) -> None:
    """Write the embedded reviews to a folder, over and over until there are ``examples`` to train on."""
    train, validation = generate("reviews")
    rows = itertools.islice(itertools.cycle(train), examples)
    for name, part in (("train", rows), ("validation", validation[:200])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def run_once(data: Path, clients: int) -> dict[str, float]:
    """Run three rounds with ``clients`` registered; return seconds to the end of round 1 and peak bytes of each process."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        changes = [*SAME_WORK, f"data.path={data}", f"partition.clients={clients}", f"output={output}"]
        command = [sys.executable, "-m", "fedsim", "run", str(CONFIG), *changes]
        started = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        events = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        peaks = json.loads((output / "summary.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
    (ended,) = [event["time"] for event in events if event["event"] == "round" and event["round"] == 1]
    (actor,) = peaks["workers"]
    return {
        _SECONDS: datetime.fromisoformat(ended).timestamp() - started,
        "peak of the driver": peaks["driver"],
        "peak of the actor": actor,
        "peak of the server": peaks["server"],
    }


def measure_registered(populations: Sequence[int], runs: int) -> list[Row]:
    """Return the rows of runs that differ in how many clients are registered; ratios are to the first number."""
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with TemporaryDirectory() as folder:
        write_data(Path(folder), max(populations) * BATCH_SIZE)

        def side(name: str, clients: int) -> Callable[[], float]:
            def run() -> float:
                found = run_once(Path(folder), clients)
                for figure, value in found.items():
                    figures[figure][name].append(value if figure == _SECONDS else value / 2**20)
                return found[_SECONDS]

            return run

        names = {clients: f"{clients:,} clients" for clients in populations}
        in_turn({name: side(name, clients) for clients, name in names.items()}, runs)
    return [
        row
        for figure, values in figures.items()
        for row in compare("memory", values, "s" if figure == _SECONDS else "MiB", names[populations[0]], f"{figure}: ")
    ]


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment."""

    own: int
    """Private memory of the processes."""
    stored: int
    """Objects in Ray's store."""


class Watch(threading.Thread):
    """Samples the memory of this process, its children and the object store."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._seen = [memory_now()]

    def run(self) -> None:
        """Sample until :meth:`end`."""
        while not self._ended.wait(_POLL_SECONDS):
            self._seen.append(memory_now())

    def end(self) -> None:
        """Take a last sample."""
        self._ended.set()
        self.join()
        self._seen.append(memory_now())

    def above(self) -> dict[str, float]:
        """Return, in MB, how far the peaks of processes, store and both together were above the start."""
        before = self._seen[0]
        return {
            "processes": (max(seen.own for seen in self._seen) - before.own) / 1e6,
            "object store": (max(seen.stored for seen in self._seen) - before.stored) / 1e6,
            "together": (max(seen.own + seen.stored for seen in self._seen) - before.own - before.stored) / 1e6,
        }


def memory_now() -> Memory:
    """Return the memory of this process with its children, and of the object store of the Ray that it is connected to."""
    process = psutil.Process()
    return Memory(sum(map(own_bytes, [process, *process.children(recursive=True)])), stored_bytes())


def stored_bytes() -> int:
    """Return the bytes of all objects in the store of the Ray that this process is connected to."""
    from fedsim.executors.cluster.ray_internals import store_statistics
    from fedsim.executors.ray.metrics import stored_bytes as by_resources

    stats = store_statistics()
    return int(by_resources() if stats is None else stats.object_store_bytes_used)


def own_bytes(process: psutil.Process) -> int:
    """Return the resident bytes of a process that belong to it alone, 0 if it has ended."""
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    # Linux tells what of it is shared: files and the object store.
    return int(memory.rss - getattr(memory, "shared", 0))


def carry(make: MakeExecutor, clients: int, elements: int, rounds: int) -> dict[str, float]:
    """Do rounds of the add-one federation on Ray; return what :meth:`Watch.above` does."""
    carrying = Carrying(make(), clients, elements, group_size=group_size(clients))
    try:
        carrying.start()
        watch = Watch()
        watch.start()
        for _ in range(rounds):
            carrying.round()
        watch.end()
        carrying.check()
    finally:
        carrying.close()
    return watch.above()


def measure_carrying(runs: int, actors: int = 2) -> list[Row]:
    """Return the rows of the add-one federation, every run of it in a process of its own."""
    figures = defaultdict(list)
    (*_, make) = fedsim_executors(CARRIED_CLIENTS, [actors]).values()
    for _ in range(runs):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            above = pool.submit(carry, make, CARRIED_CLIENTS, CARRIED_ELEMENTS, CARRIED_ROUNDS).result()
        for name, value in above.items():
            figures[name].append(value)
    case = f"{CARRIED_CLIENTS:,} clients x {CARRIED_ELEMENTS:,} elements, {actors} actors, above idle"
    # Each run's figure is a difference already: it stands against the idle cluster.
    return [
        Row("memory", f"{case}: {name}", statistics.median(values), "MB", runs=len(values))
        for name, values in figures.items()
    ]


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = RUNS,
    clients: Annotated[str, typer.Option(help="Registered clients; the first is compared with.")] = "100,1000,10000",
    carrying: Annotated[bool, typer.Option(help="Measure the add-one federation as well.")] = True,
) -> None:
    """Measure, and print the table."""
    rows = measure_registered(numbers(clients), runs)
    if carrying:
        rows += measure_carrying(runs)
    present(rows, records_file, "memory of registered clients, and of rounds that only carry vectors")


if __name__ == "__main__":
    typer.run(main)
