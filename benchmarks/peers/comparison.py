"""Run the sides alternately and compute the rows: figures, ratios, equality of the work, failures."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.measure import Row, median_ratio
from benchmarks.peers.sides import Outcome
from fedsim.core.errors import FedsimError

Side = Callable[[Path], Outcome]
Figure = Callable[[Outcome], float]

BENCHMARK = "peers"
ATTEMPTS = 2
SAME = 1e-3
"""Largest relative difference of results of the same work: float32 numbers, summed in a different order."""


class Comparison:
    """Outcomes of one case by side; a failed side has a message instead."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.outcomes: dict[str, list[Outcome]] = {}
        self.failures: dict[str, str] = {}

    def run(self, sides: Mapping[str, Side], repeats: int, console: Console) -> None:
        """Run all sides one after the other, ``repeats`` times, beginning with another one each time."""
        names = list(sides)
        self.outcomes = {name: [] for name in names}
        for repeat in range(repeats):
            turn = repeat % len(names)
            for name in self.ran(names[turn:] + names[:turn]):
                outcome = self._run(name, sides[name], console)
                if outcome is None:
                    continue
                self.outcomes[name].append(outcome)
                console.print(
                    f"{self.case}: {name}: first round after {outcome.first_round_seconds:.1f} s, then "
                    f"{outcome.round_seconds:.3f} s a round; {outcome.peak_memory_bytes / 1e6:,.0f} MB"
                )

    def _run(self, name: str, side: Side, console: Console) -> Outcome | None:
        """Run a side, with one retry: occasional crashes are not what is compared."""
        for _ in range(ATTEMPTS):
            with tempfile.TemporaryDirectory(prefix="peers-") as folder:
                try:
                    return side(Path(folder))
                except FedsimError as error:
                    failure = str(error)
                    console.print(f"{self.case}: {failure}")
        self.fail(name, failure)
        return None

    def fail(self, side: str, sentence: str) -> None:
        """Leave a side out of all rows but the one that says why."""
        self.failures.setdefault(side, sentence)

    def ran(self, names: Iterable[str]) -> list[str]:
        """Return those of the sides that have not failed."""
        return [name for name in names if name in self.outcomes and name not in self.failures]

    def row(self, what: str, unit: str, figure: Figure, side: str, base: str | None = None) -> Row:
        """Return a figure of a side, the median of its runs, and its ratio to that of the side ``base``."""
        figures = [figure(outcome) for outcome in self.outcomes[side]]
        ratio = None if base is None else median_ratio(figures, [figure(outcome) for outcome in self.outcomes[base]])
        name = f"{self.case}: {what}: {side}"
        return Row(BENCHMARK, name, statistics.median(figures), unit, ratio, base or "", len(figures))

    def difference_rows(self, sides: Iterable[str], base: str, same: float = SAME) -> list[Row]:
        """Return how far the sides' final vector and loss are from those of ``base``; those further than ``same`` fail."""
        rows: list[Row] = []
        for side in self.ran(sides) if self.ran([base]) else ():
            pairs = list(zip(self.outcomes[side], self.outcomes[base], strict=True))
            gaps = {
                "final vector": max(relative_difference(theirs.vector_F, ours.vector_F) for theirs, ours in pairs),
                "final loss": max(relative_difference(theirs.loss, ours.loss) for theirs, ours in pairs),
            }
            for what, gap in gaps.items():
                name = f"{self.case}: {what}: {side}"
                rows.append(Row(BENCHMARK, name, gap, "relative difference", None, base, len(pairs)))
                if not gap <= same:
                    self.fail(side, f"the {what} of {side} differs from that of {base} by {gap:.2g}: not the same work")
        return rows

    def failure_rows(self) -> list[Row]:
        """Return a row with a sentence for each side that failed."""
        return [
            Row(BENCHMARK, f"{self.case}: {sentence}", None, f"{side} failed", runs=0)
            for side, sentence in self.failures.items()
        ]


def relative_difference(figure: np.ndarray | float, base: np.ndarray | float) -> float:
    """Return the norm of the difference as a share of the norm of ``base``."""
    difference, norm = (np.linalg.norm(np.atleast_1d(value)) for value in (np.subtract(figure, base), base))
    return float(difference / norm)
