"""The page of a run while it goes on: drawn from its events alone, cheap to make, and reloaded by the browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fedsim.display.watch.run_state import RunState
from fedsim.records.following import FollowedLog, LocalSource

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config
    from fedsim.records.run_folder import RunFolder

_SHARE = 0.02
"""Most of a run's time that pages may take."""


class LivePage:
    """Writes ``report.html`` of a run now and then; a context manager within which the run goes on.

    The first page comes when a run has lasted as long as the time between two, so a short run has the final one alone. A page
    that was written is left without reloading when the run ends early; the final page replaces it otherwise.

    Parameters
    ----------
    every_seconds
        Least time between two pages; None for none.
    note
        Called with a warning if a page cannot be written, once; there are no more pages then.
    clock
        Monotonic time in seconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        every_seconds: float | None,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._config, self._note, self._clock = folder.report, config, note, clock
        self._every = every_seconds
        self._log = FollowedLog(LocalSource(folder.path))
        self._run = RunState()
        self._due = None if every_seconds is None else clock() + every_seconds
        self._written = False

    @classmethod
    def of(cls, config: Config, folder: RunFolder, note: Callable[[str], None]) -> LivePage:
        """Return the page that a config asks for."""
        tracking = config.tracking
        return cls(folder, config, tracking.page_every_seconds if tracking.plots else None, note)

    def __enter__(self) -> LivePage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._written:
            self._write(f"Ended early: {_why(error)}; fedsim run --resume continues it.", None)

    def round_done(self) -> None:
        """Write the page if it is due."""
        if self._due is None or self._clock() < self._due:
            return
        begun, used = self._clock(), time.thread_time()
        self._write("", self._every)
        if self._due is not None and self._every is not None:
            cost = max(self._clock() - begun, time.thread_time() - used)
            self._due = self._clock() + max(self._every, cost / _SHARE)

    def _write(self, ended: str, refresh_seconds: float | None) -> None:
        from fedsim.display.page.live_parts import live_page
        from fedsim.display.page.render import render

        found = self._log.look()
        if found.anew:
            self._run = RunState()
        self._run.add(found.events)
        self._run.total_rounds = self._config.rounds
        asked = self._config.evaluation.generate
        self._run.text_metrics = () if asked is None else asked.metrics
        try:
            _replace(self._path, render(live_page(self._run, self._config, ended, refresh_seconds)))
            self._written = True
        except OSError as error:
            self._due = None
            self._note(f"warning: {self._path.name} is not kept up to date: {error.strerror or error}")


def _why(error: BaseException) -> str:
    """Return why a run ended early, in a few words."""
    if isinstance(error, GeneratorExit):
        return "the program left it"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _replace(path: Path, text: str) -> None:
    """Replace a file, so that a browser never reads half of it; not synced to disk, since the next one comes soon."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
