"""Shared by the benchmarks: alternating measurements, medians, a table on screen and one line of JSON per figure.

A machine's speed drifts, so figures are compared in pairs: a ratio is the median over runs of two figures measured one right
after the other.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import typer
from rich.console import Console
from rich.table import Table

RUNS = 5
"""Fewest measurements for a median."""


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark."""

    benchmark: str
    case: str
    value: float | None
    """None if there is no figure; the case then explains why."""
    unit: str
    ratio: float | None = None
    """Median over runs of this figure divided by its reference."""
    ratio_to: str = ""
    """Reference of the ratio."""
    runs: int = 1
    ratio_quartiles: tuple[float, float] | None = None
    """First and third quartile of these ratios."""


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(sides: Mapping[str, Callable[[], float]], runs: int = RUNS) -> dict[str, list[float]]:
    """Measure every side ``runs`` times, alternating within a run, in an order that rotates from run to run.

    Parameters
    ----------
    sides
        By name, a function that does its work and returns its figure (seconds, updates a second).
    """
    names = list(sides)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for run in range(runs):
        first = run % len(names)
        for name in names[first:] + names[:first]:
            figures[name].append(sides[name]())
    return figures


def median_ratio(figures: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios of figures from the same run."""
    return statistics.median(ratios(figures, base))


def ratios(figures: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratios of figures from the same run."""
    return [figure / other for figure, other in zip(figures, base, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the first and the third quartile; None of fewer than two values."""
    if len(values) < 2:
        return None
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def compare(
    benchmark: str, figures: Mapping[str, Sequence[float]], unit: str, ratio_to: str, prefix: str = ""
) -> list[Row]:
    """Return one row for each side of :func:`in_turn`, with its ratio to the side ``ratio_to``."""
    return [
        Row(
            benchmark,
            prefix + name,
            statistics.median(values),
            unit,
            median_ratio(values, figures[ratio_to]),
            prefix + ratio_to,
            len(values),
            None if name == ratio_to else quartiles(ratios(values, figures[ratio_to])),
        )
        for name, values in figures.items()
    ]


def numbers(words: str, multiple_of: int = 1) -> list[int]:
    """Return the numbers of an option."""
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        raise typer.BadParameter(f"give whole numbers with commas, not {words!r}") from None
    for number in numbers:
        if number < 1 or number % multiple_of:
            what = "positive numbers" if multiple_of == 1 else f"positive multiples of {multiple_of}"
            raise typer.BadParameter(f"give {what}, not {number}")
    return numbers


def machine() -> str:
    """Return the machine in words: processor, cores, memory, system."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    memory = psutil.virtual_memory().total / 2**30
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return f"{name}, {cores} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def present(rows: Iterable[Row], records_file: Path | None = None, title: str = "") -> None:
    """Print the rows as a table and, where a file is given, write them to it as lines of JSON."""
    rows = list(rows)
    table = Table("case", "value", "unit", "ratio", "to", "runs", title=title or rows[0].benchmark, caption=machine())
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        if row.ratio_quartiles is not None:
            ratio += " ({:.3g} to {:.3g})".format(*row.ratio_quartiles)
        value = "" if row.value is None else f"{row.value:,.4g}"
        table.add_row(row.case, value, row.unit, ratio, row.ratio_to, str(row.runs))
    Console(highlight=False, width=160).print(table)
    if records_file is not None:
        write(rows, records_file)


def write(rows: Iterable[Row], records_file: Path) -> None:
    """Write the rows to a file as lines of JSON."""
    records_file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
