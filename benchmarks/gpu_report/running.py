"""Run cells one after another within a budget of time; what is on file is skipped, what does not fit is said."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_report.figures import Figure, Ledger


@dataclass(frozen=True)
class Cell:
    """Figures that are measured together."""

    part: str
    name: str
    measure: Callable[[float], Sequence[Figure]]
    """Given the seconds that are left of the whole budget."""


class Budget:
    """Shares of the time. A part may also use what the parts before it left over, as it begins at their end.

    Parameters
    ----------
    seconds
        For all parts together, from now.
    shares
        Of each part, in the order in which they run.
    """

    def __init__(self, seconds: float, shares: Mapping[str, float]) -> None:
        self._end = time.monotonic() + seconds
        whole, so_far = sum(shares.values()), 0.0
        self._until: dict[str, float] = {}
        for part, share in shares.items():
            so_far += share
            self._until[part] = self._end - seconds * (1 - so_far / whole)

    def left(self) -> float:
        """Return the seconds that are left of the whole."""
        return self._end - time.monotonic()

    def allows(self, part: str) -> bool:
        """Whether another cell of a part may begin."""
        return time.monotonic() < self._until[part]


def run_cells(
    cells: Sequence[Cell], ledger: Ledger, budget: Budget, say: Callable[[str], None], failures_file: Path
) -> list[str]:
    """Measure the cells that are not on file; return the names of those that did not fit into the time.

    A cell that raises is on file as not measured, with the reason, and its traceback is in ``failures_file``; the others run
    all the same.
    """
    left_out: list[str] = []
    for cell in cells:
        title = f"{cell.part}: {cell.name}"
        if ledger.has(cell.part, cell.name):
            say(f"{title}: on file")
            continue
        if not budget.allows(cell.part):
            left_out.append(title)
            continue
        started = time.monotonic()
        try:
            figures = cell.measure(budget.left())
        except Exception as error:
            with failures_file.open("a", encoding="utf-8") as file:
                file.write(f"{title}\n{traceback.format_exc()}\n")
            figures = [Figure(cell.name, "failed", note=_sentence(error))]
        ledger.add(cell.part, cell.name, figures)
        failed = [figure.note for figure in figures if not figure.values]
        say(f"{title}: {time.monotonic() - started:.1f} s{''.join(f'; FAILED: {note}' for note in failed)}")
    return left_out


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:300] if first else 'no message'}"
