"""The parts of the report, in order of their worth: is it right, is it fast, is it faster than what others would write?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.gpu_report import peaks
from benchmarks.gpu_report.commands import gpu_tests, ray_runs
from benchmarks.gpu_report.figures import Figure
from benchmarks.gpu_report.parity import gpu_against_cpu
from benchmarks.gpu_report.running import Cell
from benchmarks.gpu_report.shapes import LARGE, SMALL, ModelSize
from benchmarks.gpu_report.speed import Bench, Counts, against_plain, over_peft, shared_passes
from benchmarks.gpu_report.timing import release

SHARES = {"peak": 0.1, "parity": 0.7, "tests": 1.0, "shared": 1.6, "peft": 0.8, "ray": 1.0, "formats": 0.8}
"""Of the time, by part; in minutes where the whole is six."""
ABOUT = {
    "peak": "what the GPU can do in bfloat16 products",
    "parity": "clients' local training on the GPU and on a CPU, in float32, in a few layers of full width",
    "tests": "the tests marked for a GPU",
    "shared": "clients one by one and in shared passes",
    "peft": "a loop of transformers and PEFT, one client after another, and shared passes",
    "ray": "fedsim run with one actor, and with several by fraction",
    "formats": "autocast, and compiled layers",
}
TUNERS = ("prefix", "lora")


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    models: Sequence[ModelSize]
    counts: Counts
    product: int
    """Rows and columns of the matrices whose product shows the peak."""
    actors: Sequence[int]
    """Of the runs on Ray."""


FULL = Sizes(LARGE, Counts((1, 8, 32, 100), alone=8, aimed=32), 8192, (1, 4))
TINY = Sizes(SMALL, Counts((1, 4, 8), alone=2, aimed=4), 256, (1, 2))


def cells(parts: Sequence[str], sizes: Sizes, bench: Bench, gpu: str | None) -> list[Cell]:
    """Return the cells of some parts, in order."""
    made: dict[str, list[tuple[str, _Measure]]] = {
        "peak": [("products", lambda left: peaks.measure(sizes.product, bench.device, gpu))],
        "parity": _of_models(sizes, lambda size, tuner: gpu_against_cpu(bench, size, tuner)),
        "tests": [("tests/clients/test_on_gpu.py", gpu_tests)],
        "shared": _of_models(sizes, lambda size, tuner: shared_passes(bench, size, tuner)),
        "peft": _of_models(sizes, lambda size, tuner: over_peft(bench, size, tuner)),
        "ray": [(sizes.models[0].name, lambda left: ray_runs(sizes.models[0], bench.device, sizes.actors, left))],
        "formats": _formats(sizes, bench),
    }
    return [Cell(part, name, _released(bench, measure)) for part in parts for name, measure in made[part]]


_Measure = Callable[[float], Sequence[Figure]]


def _of_models(sizes: Sizes, measure: Callable[[ModelSize, str], Sequence[Figure]]) -> list[tuple[str, _Measure]]:
    return [
        (f"{size.name}, {tuner}", lambda left, size=size, tuner=tuner: measure(size, tuner))
        for size in sizes.models
        for tuner in TUNERS
    ]


def _formats(sizes: Sizes, bench: Bench) -> list[tuple[str, _Measure]]:
    """Return the cells of number formats and of compiled layers, for a prefix: LoRA has three times as many graphs."""
    changes = {"autocast": {"autocast": "bfloat16"}, "compile": {"compile": True}}
    return [
        (
            f"{size.name}, {name}",
            lambda left, size=size, name=name: against_plain(bench, size, "prefix", name, changes[name]),
        )
        for name in changes
        for size in sizes.models
    ]


def _released(bench: Bench, measure: _Measure) -> _Measure:
    """Give back the memory of the cell before, and then measure."""

    def begin(left: float) -> Sequence[Figure]:
        release(bench.device)
        return measure(left)

    return begin
