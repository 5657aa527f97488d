"""Local training by a bare PyTorch loop and by fedsim: one by one, fused, with partial prompts, from cached states.

    python -m benchmarks.local_training --data FOLDER [--tuner KIND] [--models tiny,minilm] [--clients 10] [--runs 5]
        [--json FILE]

FOLDER holds SST-2 as train.jsonl and validation.jsonl, for MiniLM; the tiny model needs none. All sides train the same clients
on the same mini-batches and end with the same numbers, which is checked; ``benchmarks/kinds.py`` holds the bare loop of each.
Two processes with one thread each share the clients, except for the bare loop with two threads. ``roofline`` is the
matrix-multiply work that the mathematics needs (no padding, no layer below the lowest tuned one where it is cached, no gradient
of a frozen weight) over what the same processes reach in large float32 matrix products.

Shape suffixes: F entries of the exchanged vector.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.flops import Shape, needed_flops
from benchmarks.kinds import kind_of, overrides
from benchmarks.kinds import names as names_of_kinds
from benchmarks.measure import RUNS, Row, compare, in_turn, present
from fedsim.configuration.schema import Config, read_config

ROOT = Path(__file__).resolve().parents[1]
_COMMON = (
    "server.kind=fedavg",
    "layers.choose=all",
    "partition.clients=100",
    "client.batch_size=8",
    "client.threads=1",
)
_PROCESSES = 2


@dataclass(frozen=True)
class Side:
    """One way to do the work."""

    name: str
    kind: str
    """bare or fedsim."""
    threads: int = 1
    upper: bool = False
    """Whether only the upper half of the layers has prompts."""
    fuse: bool = False
    cached: bool = False


SIDES = (
    Side("bare loop, 1 process, 2 threads", "bare", threads=2),
    Side("bare loop, 2 processes", "bare"),
    Side("fedsim one by one", "fedsim"),
    Side("fedsim fused", "fedsim", fuse=True),
    Side("fedsim fused, upper layers", "fedsim", fuse=True, upper=True),
    Side("fedsim fused, upper layers, layers below cached", "fedsim", fuse=True, upper=True, cached=True),
)


def configs(names: list[str], data: Path | None, tuner: str) -> dict[str, Config]:
    """Return the config of each model."""
    found: dict[str, Config] = {}
    if tuner not in names_of_kinds():
        raise typer.BadParameter(f"--tuner {tuner} is not one of {', '.join(names_of_kinds())}")
    common = (*_COMMON, *overrides(tuner), *kind_of(tuner).same)
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
        import torch

        from benchmarks.peers.work import Work
        from fedsim.core.messages import GlobalState

        self._torch = torch
        work = Work.load(Path(folder))
        self._clients = clients
        loop = kind_of(work.tuner.kind).loop
        self._plain = {upper: loop(_with_layers(work, upper)) for upper in (False, True)}
        self._workers = {cached: _worker(folder, cached) for cached in (False, True)}
        full = self._workers[False].info().full
        rng = np.random.default_rng(0)
        self._states = {}
        for upper in (False, True):
            layers = _layers(full.geometry.num_layers, upper)
            vector_F = rng.normal(0.0, 0.02, full.exchanged(layers).size).astype(np.float32)
            self._states[upper] = GlobalState(0, layers, vector_F)
        self._caches: dict[int, Any] = {}

    def run(self, side: Side, clients: list[int]) -> tuple[np.ndarray, int]:
        """Train some clients; return the sum of their vectors, weighted by examples, and their steps."""
        self._torch.set_num_threads(side.threads)
        state = self._states[side.upper]
        if side.kind == "bare":
            total_F = np.zeros(len(state.vector_F))
            for client in clients:
                vector_F, examples = self._plain[side.upper].train(0, client, state.vector_F)
                total_F += examples * vector_F.astype(np.float64)
            return total_F, 0
        from fedsim.core.messages import ClientState, WorkGroup

        missing = tuple(client for client in clients if client not in self._caches) if side.cached else ()
        group = WorkGroup(0, 0, tuple(clients), fuse=len(clients) if side.fuse else 1, keep_cached=missing)
        caches = self._caches if side.cached else {}
        made = self._workers[side.cached].train(group, state, *map(ClientState, clients), caches=caches)
        self._caches.update(zip(missing, made.caches, strict=True))
        failed = [report.failure for report in made.reports if report.failure is not None]
        if failed:
            raise RuntimeError(failed[0].traceback)
        return made.update.sums["vector"], sum(report.num_steps for report in made.reports)

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


def _with_layers(work: Any, upper: bool) -> Any:
    from dataclasses import replace

    return replace(work, layers=_layers(len(work.layers), upper))


def _layers(count: int, upper: bool) -> tuple[int, ...]:
    return tuple(range(count // 2 if upper else 0, count))


def _worker(folder: str, cached: bool) -> Any:
    import pickle

    from clients.worker import ClientWorker

    spec = pickle.loads((Path(folder) / f"spec-{cached}.pickle").read_bytes())
    return ClientWorker(spec)


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
        for cached in (False, True):
            cache = config.model.trunk_cache.model_copy(update={"dtype": "auto" if cached else "off"})
            one = config.model_copy(update={"model": config.model.model_copy(update={"trunk_cache": cache})})
            (Path(folder) / f"spec-{cached}.pickle").write_bytes(pickle.dumps(prepare(one).spec))
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


def measure(name: str, config: Config, clients: int, runs: int) -> list[Row]:
    """Return the rows of one model."""
    from fedsim.simulation.preparation import prepare

    spec = prepare(config).spec
    chosen = [int(client) for client in np.random.default_rng(1).permutation(spec.shards.num_clients)[:clients]]
    chosen.sort(key=lambda client: -len(spec.shards.train(client)))
    halves = [sorted(chosen[0::4] + chosen[3::4]), sorted(chosen[1::4] + chosen[2::4])]
    results: dict[str, np.ndarray] = {}
    with processes(config, chosen) as connections:

        def work(side: Side) -> float:
            parts = [sorted(chosen)] if side.threads > 1 else halves
            started = time.perf_counter()
            for connection, part in zip(connections, parts, strict=False):
                connection.send(("run", (side, part)))
            sums = [connection.recv()[0] for connection, _ in zip(connections, parts, strict=False)]
            results[side.name] = sum(sums)
            return time.perf_counter() - started

        def peak() -> float:
            for connection in connections:
                connection.send(("peak", ()))
            return sum(connection.recv() for connection in connections)

        for side in SIDES:
            work(side)  # warm, and with the frozen layers cached
        figures = in_turn({side.name: lambda side=side: work(side) for side in SIDES} | {"peak": peak}, runs)
    _check_same(results)
    peaks = figures.pop("peak")
    rows = compare("local_training", figures, "seconds", SIDES[0].name, f"{name}: ")
    two = compare("local_training", figures, "seconds", SIDES[1].name, f"{name}: ")
    rows += [row for row in two if "fedsim" in row.case]
    for side in SIDES:
        flops = work_flops(config, spec, chosen, side)
        shares = [flops / seconds / rate for seconds, rate in zip(figures[side.name], peaks, strict=True)]
        rows.append(
            Row("local_training", f"{name}: {side.name}, roofline", statistics.median(shares), "share", None, "", runs)
        )
    rows.append(Row("local_training", f"{name}: peak", statistics.median(peaks) / 1e9, "GFLOP/s", None, "", runs))
    return rows


def _check_same(results: dict[str, np.ndarray]) -> None:
    """Raise unless all sides did the same work."""
    for upper in (False, True):
        same = [results[side.name] for side in SIDES if side.upper is upper and side.name in results]
        for other in same[1:]:
            distance = np.linalg.norm(other - same[0]) / np.linalg.norm(same[0])
            if not distance < 1e-4:
                raise RuntimeError(f"the sides end {distance:.1e} apart: they do not do the same work")


def work_flops(config: Config, spec: Any, clients: list[int], side: Side) -> float:
    """Return the matrix-multiply operations that the mathematics of the work needs."""
    import json

    values = json.loads(spec.weights.config_json)
    shape = Shape(values["hidden_size"], values["intermediate_size"], values["num_hidden_layers"])
    lengths_N = np.concatenate([spec.train.lengths_N[spec.shards.train(client)] for client in clients])
    return (config.client.epochs or 1) * needed_flops(
        shape,
        lengths_N,
        config.prompt.length if config.tuner.kind == "prefix" else 0,
        min(_layers(shape.layers, side.upper)),
        cached=side.cached,
        low_rank=kind_of(config.tuner.kind).numbers_per_token(config),
        one_read=config.model.head.pooling != "mean",
    )


def main(
    data: Annotated[Path | None, typer.Option(help="SST-2: a folder with train.jsonl and validation.jsonl.")] = None,
    tuner: Annotated[str, typer.Option(help="What is trained: a tuner.kind, such as lora (rank 8).")] = "prefix",
    models: Annotated[str, typer.Option(help="tiny, minilm, or both, with a comma.")] = "tiny,minilm",
    clients: Annotated[int, typer.Option(help="Clients that train.", min=4)] = 10,
    runs: Annotated[int, typer.Option(help="Measurements of each side.", min=1)] = RUNS,
    json: Annotated[Path | None, typer.Option(help="File for JSON lines.")] = None,
) -> None:
    """Measure and print."""
    rows: list[Row] = []
    for name, config in configs(models.split(","), data, tuner).items():
        rows += measure(name, config, clients, runs)
    present(rows, json, f"local training, {tuner}: the same clients, the same steps")


if __name__ == "__main__":
    typer.run(main)
