"""The actors of a study, and how many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from fedsim.executors.cluster import local_cluster
from fedsim.simulation.interrupt import InterruptWatch
from fedsim.study.cells import Cell
from fedsim.study.fitting import fitting, run_bytes, stored_bytes
from fedsim.study.folder import StudyFolder
from fedsim.study.sharing import shared_ray

if TYPE_CHECKING:
    from fedsim.executors.cells.pool import CellPool
    from fedsim.executors.config import RayConfig


class Crew:
    """The actors that do a study's runs, those of its search first; a context manager that starts them when they are needed.

    Parameters
    ----------
    folder
        The study's folder.
    at_once
        Runs at a time: each on one actor, or, with 1, one after another on all actors; None decides by what fits.
    most
        Runs of the search, or of the report, whichever are more.
    watch
        Ends a run at the first signal.
    """

    def __init__(self, folder: StudyFolder, at_once: int | None, most: int, watch: InterruptWatch) -> None:
        self.folder = folder
        self.at_once = at_once
        self.watch = watch
        self._most = most
        self._stack = ExitStack()
        self._pool: CellPool | None = None
        self._first: list[Cell] = []
        """A run that the actors were started for."""
        self._note: Callable[[str], None] = lambda text: None

    def __enter__(self) -> Crew:
        self._stack.enter_context(local_cluster.discarded())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool = None
        self._stack.__exit__(kind, error, trace)

    @property
    def is_there(self) -> bool:
        """Whether its actors have been started."""
        return self._pool is not None

    def pool(self, cells: Sequence[Cell], note: Callable[[str], None]) -> CellPool:
        """Return the actors; start them if they are not there.

        Parameters
        ----------
        cells
            The first runs that they are for.
        note
            Called with messages for the user from here on.
        """
        self._note = note
        shared = shared_ray([*self._first, *cells])
        if self._pool is None:
            self._first = list(cells[:1])
            self._pool = self._stack.enter_context(self._started(cells, shared))
        return self._pool

    def _started(self, cells: Sequence[Cell], shared: RayConfig) -> CellPool:
        if shared.address is None:
            local_cluster.secure()
        from fedsim.executors.cells.pool import CellPool

        most = min(self.at_once or self._most, self._most, fitting(cells, self._note))
        return CellPool(
            shared,
            max(cell.config.client.threads for cell in cells),
            most,
            stored_bytes(cells),
            self.folder.path.absolute(),
            _modules(cells),
            self.folder.path.absolute().name,
            self.watch.check,
            lambda text: self._note(text),
            # Read for it where data are: a frozen-layer cache may be far smaller than it may grow.
            run_bytes(cells) if shared.address is not None and shared.memory == "estimate" else None,
        )


def _modules(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the modules of transformers that the models on this machine's disk need."""
    from clients.backbone.location import locate, modeling_module

    places = {locate(cell.config.model) for cell in cells}
    return tuple(sorted({module for place in places if (module := modeling_module(place)) is not None}))
