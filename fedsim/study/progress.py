"""Progress display of a study: one bar over all rounds, a line per running cell, and a line for each that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from fedsim.executors.cells.job import Doing
from fedsim.study.cells import Cell


class StudyProgress:
    """Shows a study's progress; a context manager.

    Parameters
    ----------
    cells
        All cells, those finished before too.
    what
        What the cells are, for example ``search``.
    """

    def __init__(self, cells: Sequence[Cell], console: Console, what: str = "") -> None:
        self._console = console
        self._rounds = {str(cell): cell.config.rounds for cell in cells}
        self._what = what
        self._total = sum(self._rounds.values())
        self._ended_rounds = 0
        self._ended = 0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_interactive,
            transient=True,
        )
        self._all: TaskID | None = None
        self._each: dict[str, TaskID] = {}

    def __enter__(self) -> StudyProgress:
        self._bars.start()
        self._all = self._bars.add_task(f"{self._what or 'all'} {self._count}", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @property
    def _count(self) -> str:
        return f"{self._ended}/{len(self._rounds)}"

    def running(self, doing: Sequence[Doing]) -> None:
        """Show what is running now."""
        now = {each.job: each.round for each in doing if each.job}
        for name in [name for name in self._each if name not in now]:
            self._bars.remove_task(self._each.pop(name))
        for name, round in now.items():
            if name not in self._each:
                self._each[name] = self._bars.add_task(f"  {name}", total=self._rounds.get(name))
            self._bars.update(self._each[name], completed=round)
        self._update(sum(now.values()))

    def ended(self, cell: Cell, words: str) -> None:
        """Show that a cell has ended."""
        self._ended += 1
        self._ended_rounds += self._rounds[str(cell)]
        self.note(f"{self._what}{' ' if self._what else ''}{self._count}  {cell}: {words}")
        self._update(0)

    def note(self, text: str) -> None:
        """Show a message that stays."""
        self._bars.console.print(Text(text), soft_wrap=True)
        self._console.file.flush()  # a log file or pipe shows each line at once

    def _update(self, running: int) -> None:
        if self._all is not None:
            description = f"{self._what or 'all'} {self._count}"
            self._bars.update(self._all, completed=self._ended_rounds + running, description=description)
