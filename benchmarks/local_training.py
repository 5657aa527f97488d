"""Local training by a bare PyTorch loop and by fedsim: one by one, fused, with partial prompts, from cached states.

    python -m benchmarks.local_training --data FOLDER [--tuner KIND] [--models tiny,minilm] [--clients 10] [--runs 5]
        [--also-autocast] [--json FILE]

FOLDER holds SST-2 as train.jsonl and validation.jsonl, for MiniLM; the tiny model needs none. All sides train the same clients
on the same mini-batches and end with the same numbers, which is checked; ``benchmarks/kinds.py`` holds the bare loop of each.
Two processes with one thread each share the clients, except for the bare loop with two threads. ``roofline`` is the
matrix-multiply work that the mathematics needs (no padding, no layer below the lowest tuned one where it is cached, no gradient
of a frozen weight) over what the same processes reach in large float32 matrix products.

Sides compute in float32 unless their name says otherwise: fedsim also with ``model.products=bfloat16`` where the config has
that key, the bare loop with ``--also-autocast`` also under PyTorch's autocast.

Shape suffixes: F entries of the exchanged vector.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.kinds import kind_of, overrides
from benchmarks.kinds import names as names_of_kinds
from benchmarks.local_sides import Side, sides, tuned_layers, work_flops
from benchmarks.measure import RUNS, Row, compare, in_turn, present
from benchmarks.products import APART, AUTOCAST, FLOAT32, named, of_fedsim, override
from fedsim.configuration.schema import Config, read_config

ROOT = Path(__file__).resolve().parents[1]
_COMMON = (
    "server.kind=fedavg",
    "partition.clients=100",
    "client.batch_size=8",
    "client.threads=1",
)
_PROCESSES = 2


def configs(names: list[str], data: Path | None, tuner: str) -> dict[str, Config]:
    """Return the config of each model."""
    found: dict[str, Config] = {}
    if tuner not in names_of_kinds():
        raise typer.BadParameter(f"--tuner {tuner} is not one of {', '.join(names_of_kinds())}")
    common = (*_COMMON, *overrides(tuner), *kind_of(tuner).same, *override(FLOAT32))
    if "tiny" in names:
        found["tiny"] = read_config(ROOT / "configs/quickstart.yaml", [*common, "model.head.kind=classifier"])
    if "minilm" in names:
        if data is None:
            raise typer.BadParameter("minilm needs --data, a folder with SST-2 as train.jsonl and validation.jsonl")
        found["minilm"] = read_config(ROOT / "configs/minilm_sst2.yaml", [*common, f"data.path={data.absolute()}"])
    return found


# -- a process with its share of the work ------------------------------------------------------------------------------


class Share:
    """Model, data and both ways to train, in one process."""

    def __init__(self, folder: str, clients: list[int]) -> None:
        from dataclasses import replace

        import torch

        from benchmarks.peers.work import Work
        from fedsim.core.messages import GlobalState

        self._torch = torch
        work = Work.load(Path(folder))
        self._clients = clients
        loop = kind_of(work.tuner.kind).loop
        spec = _spec(folder, cached=False)
        self._workers = {way: _spec(folder, *way).build("cpu") for way in product((False, True), of_fedsim())}
        full = self._workers[False, FLOAT32].info().full
        rng = np.random.default_rng(0)
        self._plain, self._states = {}, {}
        for upper in (False, True):
            layers = tuned_layers(full.geometry, upper)
            start_F = spec.initial_vector(full.exchanged(layers))
            # Away from starts at which some arrays have no gradient yet.
            start_F += rng.normal(0.0, 0.02, len(start_F)).astype(np.float32)
            self._states[upper] = GlobalState(0, layers, start_F)
            for autocast in (False, True):
                self._plain[upper, autocast] = loop(replace(work, layers=layers, autocast=autocast))
        self._caches: dict[str, dict[int, Any]] = {products: {} for products in of_fedsim()}

    def run(self, side: Side, clients: list[int]) -> tuple[np.ndarray, int]:
        """Train some clients; return the sum of their vectors, weighted by examples, and their steps."""
        self._torch.set_num_threads(side.threads)
        state = self._states[side.upper]
        if side.kind == "bare":
            total_F = np.zeros(len(state.vector_F))
            for client in clients:
                loop = self._plain[side.upper, side.products == AUTOCAST]
                vector_F, examples = loop.train(0, client, state.vector_F)
                total_F += examples * vector_F.astype(np.float64)
            return total_F, 0
        from fedsim.core.messages import ClientState, WorkGroup

        kept = self._caches[side.products]
        missing = tuple(client for client in clients if client not in kept) if side.cached else ()
        group = WorkGroup(0, 0, tuple(clients), fuse=len(clients) if side.fuse else 1, keep_cached=missing)
        caches = kept if side.cached else {}
        worker = self._workers[side.cached, side.products]
        made = worker.train(group, state, *map(ClientState, clients), caches=caches)
        kept.update(zip(missing, made.caches, strict=True))
        failed = [report.failure for report in made.reports if report.failure is not None]
        if failed:
            raise RuntimeError(failed[0].traceback)
        return made.update.sums["vector"], sum(report.num_steps for report in made.reports)

    def layers(self, upper: bool) -> tuple[int, ...]:
        """Return the tuned layers: all, or their upper half."""
        layers: tuple[int, ...] = self._states[upper].layers
        return layers

    def start(self, upper: bool) -> np.ndarray:
        """Return the vector from which clients train."""
        return self._states[upper].vector_F

    def peak(self) -> float:
        """Return the FLOP/s of large float32 matrix products."""
        self._torch.set_num_threads(1)
        left, right = self._torch.randn(2048, 1536), self._torch.randn(1536, 1536)
        rates = []
        for _ in range(6):
            started = time.perf_counter()
            left @ right
            rates.append(2 * 2048 * 1536 * 1536 / (time.perf_counter() - started))
        return max(rates[1:])


def _spec(folder: str, cached: bool, products: str = FLOAT32) -> Any:
    import pickle

    return pickle.loads((Path(folder) / f"spec-{cached}-{products}.pickle").read_bytes())


def _serve(connection: Connection, folder: str, clients: list[int]) -> None:
    share = Share(folder, clients)
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        method, arguments = asked
        connection.send(getattr(share, method)(*arguments))


@contextmanager
def processes(config: Config, clients: list[int]) -> Iterator[list[Connection]]:
    """Start the processes, which load model and data."""
    import pickle

    from benchmarks.peers.work import Work
    from fedsim.simulation.preparation import prepare

    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        Work.of(config, 1)[0].save(Path(folder))
        for cached, products in product((False, True), of_fedsim()):
            cache = config.model.trunk_cache.model_copy(update={"dtype": "auto" if cached else "off"})
            keys = {"trunk_cache": cache, **({"products": products} if override(products) else {})}
            one = config.model_copy(update={"model": config.model.model_copy(update=keys)})
            (Path(folder) / f"spec-{cached}-{products}.pickle").write_bytes(pickle.dumps(prepare(one).spec))
        started = []
        for _ in range(_PROCESSES):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, folder, clients), daemon=True)
            process.start()
            started.append((process, here))
        try:
            for _, here in started:
                here.recv()
            yield [here for _, here in started]
        finally:
            for process, here in started:
                here.send(None)
                process.join(10)
                process.kill()


# -- the measurement ---------------------------------------------------------------------------------------------------


def measure(name: str, config: Config, clients: int, runs: int, also_autocast: bool = False) -> list[Row]:
    """Return the rows of one model."""
    from fedsim.simulation.preparation import prepare

    spec, measured = prepare(config).spec, sides(config.tuner.kind, also_autocast)
    chosen = [int(client) for client in np.random.default_rng(1).permutation(spec.shards.num_clients)[:clients]]
    chosen.sort(key=lambda client: -len(spec.shards.train(client)))
    halves = [sorted(chosen[0::4] + chosen[3::4]), sorted(chosen[1::4] + chosen[2::4])]
    results: dict[str, np.ndarray] = {}
    with processes(config, chosen) as connections:

        def asked(method: str, *arguments: tuple[Any, ...]) -> list[Any]:
            """Call a method in each process at the same time, with the arguments of that process."""
            for connection, own in zip(connections, arguments, strict=False):
                connection.send((method, own))
            return [connection.recv() for connection, _ in zip(connections, arguments, strict=False)]

        def work(side: Side) -> float:
            parts = [sorted(chosen)] if side.threads > 1 else halves
            started = time.perf_counter()
            sums = [made[0] for made in asked("run", *((side, part) for part in parts))]
            results[side.name] = sum(sums)
            return time.perf_counter() - started

        def peak() -> float:
            return sum(asked("peak", (), ()))

        for side in measured:
            work(side)  # warm, and with the frozen layers cached
        layers = {upper: asked("layers", (upper,))[0] for upper in (False, True)}
        starts = {upper: asked("start", (upper,))[0] for upper in (False, True)}
        figures = in_turn({side.name: lambda side=side: work(side) for side in measured} | {"peak": peak}, runs)
    examples = sum(len(spec.shards.train(client)) for client in chosen)
    apart = check_same(results, measured, {upper: examples * start_F for upper, start_F in starts.items()})
    peaks = figures.pop("peak")
    rows = compare("local_training", figures, "seconds", measured[0].name, f"{name}: ")
    for bare in measured:
        if bare.kind == "bare" and bare.threads == 1:
            same = {side.name for side in measured if side.kind == "fedsim" and side.upper >= bare.upper}
            of_bare = compare("local_training", figures, "seconds", bare.name, f"{name}: ")
            rows += [row for row in of_bare if row.case.removeprefix(f"{name}: ") in same]
    for side in measured:
        flops = work_flops(config, spec, layers[side.upper], chosen, side)
        shares = [flops / seconds / rate for seconds, rate in zip(figures[side.name], peaks, strict=True)]
        rows.append(
            Row("local_training", f"{name}: {side.name}, roofline", statistics.median(shares), "share", None, "", runs)
        )
    rows.append(Row("local_training", f"{name}: peak", statistics.median(peaks) / 1e9, "GFLOP/s", None, "", runs))
    rows += [
        Row("local_training", named(f"{name}: ends of sides apart", products), distance, "of the way")
        for products, distance in apart.items()
    ]
    return rows


def check_same(
    results: dict[str, np.ndarray], measured: Sequence[Side], starts: dict[bool, np.ndarray]
) -> dict[str, float]:
    """Return how far the sides of each number format end from the first one, as a share of the way from the start.

    Raises
    ------
    RuntimeError
        If the sides did not do the same work.
    """
    largest: dict[str, float] = {}
    for upper in (False, True):
        first, *others = [side for side in measured if side.upper is upper] or [None]
        for other in others:
            expected = results[first.name]
            distance = float(np.linalg.norm(results[other.name] - expected))
            if not distance < (1e-4 if other.products == FLOAT32 else APART) * np.linalg.norm(expected):
                apart = distance / np.linalg.norm(expected)
                raise RuntimeError(f"{other.name} ends {apart:.1e} from {first.name}: they do not do the same work")
            way = float(np.linalg.norm(expected - starts[upper]))
            largest[other.products] = max(largest.get(other.products, 0.0), distance / way)
    return largest


def main(
    data: Annotated[Path | None, typer.Option(help="SST-2: a folder with train.jsonl and validation.jsonl.")] = None,
    tuner: Annotated[str, typer.Option(help="What is trained: a tuner.kind, such as lora (rank 8).")] = "prefix",
    models: Annotated[str, typer.Option(help="tiny, minilm, or both, with a comma.")] = "tiny,minilm",
    clients: Annotated[int, typer.Option(help="Clients that train.", min=4)] = 10,
    also_autocast: Annotated[
        bool, typer.Option("--also-autocast", help="Also the bare loop under torch.autocast in bfloat16.")
    ] = False,
    runs: Annotated[int, typer.Option(help="Measurements of each side.", min=1)] = RUNS,
    json: Annotated[Path | None, typer.Option(help="File for JSON lines.")] = None,
) -> None:
    """Measure and print."""
    rows: list[Row] = []
    for name, config in configs(models.split(","), data, tuner).items():
        rows += measure(name, config, clients, runs, also_autocast)
    title = (
        f"local training, {tuner}: the same clients, the same steps; products in float32 unless a side says otherwise"
    )
    present(rows, json, title)


if __name__ == "__main__":
    typer.run(main)
