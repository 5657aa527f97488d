"""A run with injected faults: its outcome and messages, with times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faulty import Fault, FaultySpec
from fedsim.configuration.schema import Config
from fedsim.core.errors import FedsimError
from fedsim.display.progress import Progress
from fedsim.executors.base import Executor
from fedsim.executors.make import make_executor
from fedsim.records.run_folder import RunFolder
from fedsim.simulation.context import RunContext
from fedsim.simulation.loop import run_through
from fedsim.simulation.preparation import Prepared


@dataclass
class Outcome:
    """Outcome of a run."""

    vector_F: np.ndarray | None = None
    """The final prompt; None if the run stopped."""
    error: FedsimError | None = None
    notes: list[tuple[float, str]] = field(default_factory=list)
    """Messages to the user, with times."""
    ended: float = 0.0
    ok: int = 0
    """Usable client updates."""
    failed: int = 0
    replaced: int = 0
    resent: int = 0

    def said(self, words: str) -> list[str]:
        """Return the notes that contain some words."""
        return [text for _, text in self.notes if words in text]

    def noticed_after(self, struck: float) -> float | None:
        """Return the seconds from a fault to its first message, or to the error; None if there was none."""
        times = [at for at, text in self.notes if at >= struck and "warning" in text]
        if self.error is not None:
            times.append(self.ended)
        return min(times) - struck if times else None


@dataclass
class Underway:
    """A run as a thread beside it sees it."""

    executor: Executor
    round: int = 0
    """Rounds whose server step is done."""
    training: bool = False
    """Whether a work group has been trained."""


class _Told(Progress):
    """Shows nothing; keeps the messages to the user, and how far the run is."""

    def __init__(self, rounds: int, outcome: Outcome) -> None:
        super().__init__(rounds, "accuracy", quiet=True)
        self._outcome = outcome
        self.underway: Underway | None = None

    def note(self, text: str) -> None:
        self._outcome.notes.append((time.time(), text))

    def clients_done(self, round: int, done: int, total: int) -> None:
        if self.underway is not None:
            self.underway.round, self.underway.training = round - 1, True


def run(
    config: Config,
    prepared: Prepared,
    folder: Path,
    *faults: Fault,
    meanwhile: Callable[[Underway, threading.Event], None] | None = None,
) -> Outcome:
    """Run a config while faults strike.

    Parameters
    ----------
    meanwhile
        Called in a separate thread during the run; must return when the event is set.
    """
    outcome = Outcome()
    prepared = Prepared(prepared.data, FaultySpec.of(prepared.spec, *faults), prepared.contents)
    over = threading.Event()
    with (
        _Told(config.rounds, outcome) as progress,
        RunFolder.create(folder) as records,
        closing(make_executor(config, lambda: None, progress.note)) as executor,
    ):
        progress.underway = Underway(executor)
        beside = threading.Thread(target=meanwhile or (lambda underway, over: None), args=(progress.underway, over))
        beside.start()
        try:
            result = run_through(RunContext(config, prepared, executor, records, progress))
            outcome.vector_F = result.state.vector_F
            outcome.ok, outcome.failed = result.totals.client_updates, result.totals.client_failures
        except FedsimError as error:
            outcome.error = error
        finally:
            outcome.ended = time.time()
            outcome.replaced, outcome.resent = executor.replaced_workers, executor.resent_clients
            over.set()
            beside.join()
    return outcome
