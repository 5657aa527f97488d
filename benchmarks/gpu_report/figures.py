"""What is measured, and the file that keeps it: one line of JSON for each cell, written as soon as the cell is measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """One measured thing of a cell, as it was measured; ratios and shares are computed from it when it is shown."""

    name: str
    unit: str
    values: tuple[float, ...] = ()
    """One for each run, in the order of the runs; none if it could not be measured, and ``note`` says why."""
    tokens: int = 0
    """Tokens that a run trains on; 0 where there are none to count."""
    flops: float = 0.0
    """Operations that the mathematics of a run needs; 0 where they are not counted."""
    memory_bytes: int | None = None
    """Peak of the GPU's tensors: the side's own weights and what its work adds; None on a CPU."""
    base: str = ""
    """Figure of the same cell with which it is compared, run for run."""
    aims: Mapping[str, float] = field(default_factory=dict)
    """What it should reach: least ``ratio`` to its base, least ``share`` of the peak, most ``value``."""
    note: str = ""


class Ledger:
    """The file of figures. A cell that was cut off leaves nothing: its line is its last act.

    Parameters
    ----------
    file
        Made with the first cell, in a folder that exists.
    setting
        Machine and size; a file holds figures of one setting.

    Raises
    ------
    ConfigError
        If the file holds figures of another setting, or something else.
    """

    def __init__(self, file: Path, setting: str) -> None:
        self._file, self._setting = file, setting
        self._cells: dict[tuple[str, str], tuple[Figure, ...]] = {}
        if not file.exists():
            return
        text = file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # the process that wrote the last line was killed while it did
            file.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            part, cell, figures = self._read(line, number)
            self._cells[part, cell] = figures

    def has(self, part: str, cell: str) -> bool:
        """Whether a cell is there and was measured."""
        figures = self._cells.get((part, cell), ())
        return bool(figures) and all(figure.values for figure in figures)

    def add(self, part: str, cell: str, figures: Sequence[Figure]) -> None:
        """Write a cell to the file; it takes the place of a former one."""
        self._cells.pop((part, cell), None)
        self._cells[part, cell] = tuple(figures)
        line = {"setting": self._setting, "part": part, "cell": cell, "figures": [asdict(figure) for figure in figures]}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cells(self) -> dict[tuple[str, str], tuple[Figure, ...]]:
        """Return the figures of every cell, by part and cell."""
        return dict(self._cells)

    def _read(self, line: bytes, number: int) -> tuple[str, str, tuple[Figure, ...]]:
        try:
            held = json.loads(line)
            part, cell, setting = held["part"], held["cell"], held["setting"]
            figures = tuple(_figure(values) for values in held["figures"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"line {number} of {self._file} is no figure of this benchmark; give another --out"
            ) from error
        if setting != self._setting:
            raise ConfigError(
                f"{self._file} holds figures of {setting}, and this is {self._setting}; give another --out"
            )
        return part, cell, figures


def _figure(values: dict[str, Any]) -> Figure:
    return Figure(**values | {"values": tuple(values["values"])})
