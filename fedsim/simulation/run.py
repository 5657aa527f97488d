"""The run as an object; ``fedsim run`` and :func:`fedsim.run` are built on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from fedsim.configuration.schema import Config, read_config
from fedsim.core.errors import FedsimError
from fedsim.core.plugin_source import blaming
from fedsim.core.plugins import guarded, load_files
from fedsim.display.progress import Progress
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.callbacks import CALLBACKS, Callback
from fedsim.simulation.interrupt import InterruptWatch
from fedsim.simulation.opening import Opened, opened
from fedsim.simulation.stopping import Stop, Stopped


class Run:
    """A run of a config: a context manager, and an iterator over its rounds.

    Entering the block reads data and model and reports mistakes; the run begins when the first round is requested. However
    the block is left before the last round, the last recorded round is saved, and ``resume=True`` continues from there. In
    the main thread, the first SIGINT or SIGTERM within the block raises ``RunInterrupted`` between rounds; a second one ends
    the process at once.

    Parameters
    ----------
    config
        A config, or the path of one.
    callbacks
        Called for each round before the loop body.
    resume
        Continue from the newest checkpoint in ``config.output``, or of the newest run with this name. A finished run is left
        unchanged; a run without a checkpoint starts over.
    progress
        Show rounds and phases; if false, only notes.
    console
        Console to write to; by default the notebook that this process serves, else standard output.

    Attributes
    ----------
    config
        The config; once the run has begun, with the number of clients found in the data.
    summary
        The contents of ``summary.json``; None until the run is finished.

    Raises
    ------
    FedsimError
        On a mistake in config, data or model, missing resources, or a failing client.
    RunInterrupted
        After SIGINT or SIGTERM; its ``kept`` names what is saved.

    Examples
    --------
    >>> with Run("configs/quickstart.yaml") as run:                     # doctest: +SKIP
    ...     for done in run:
    ...         print(done.round, done.metric, done.bytes_up)
    >>> run.summary["best_global_metric"], run.prompt                   # doctest: +SKIP
    """

    def __init__(
        self,
        config: Config | str | Path,
        *,
        callbacks: Sequence[Callback] = (),
        resume: bool = False,
        progress: bool = True,
        console: Console | None = None,
    ) -> None:
        self.config = config if isinstance(config, Config) else read_config(config)
        self.summary: dict[str, Any] | None = None
        self._callbacks = (*callbacks, *_named(self.config))
        self._resume = resume
        self._progress = progress
        self._console = console
        self._stop = Stop(self.config.rounds)
        self._open: Opened | None = None
        self._rounds: Iterator[RoundRecord] | None = None
        self._stack = ExitStack()

    # -- the block ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        if self._open is not None:
            raise FedsimError(
                "a Run can be used in one with block only; create another one, with resume=True to continue"
            )
        started = time.monotonic()
        with ExitStack() as stack:
            watch = stack.enter_context(InterruptWatch())
            shown = Progress(self.config.rounds, _metric_name(self.config), self._console, not self._progress)
            progress = stack.enter_context(shown)
            self._open = stack.enter_context(opened(self.config, self._resume, watch, progress))
            self.summary = self._open.summary
            self._rounds = self._play(self._open, started)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.left = type(error).__name__, str(error)
        try:
            self._rounds.close()  # type: ignore[union-attr]  # a generator, since the block was entered
        finally:
            self._stack.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[RoundRecord]:
        return self

    def __next__(self) -> RoundRecord:
        if self._rounds is None:
            raise FedsimError("a Run is iterated in its block: with fedsim.Run(config) as run: for done in run: ...")
        done = next(self._rounds)
        self._tell(lambda callback: callback.on_round(self, done))
        return done

    def _play(self, run: Opened, started: float) -> Iterator[RoundRecord]:
        if run.context is None:
            return
        self.config = run.context.config
        from fedsim.simulation.proceeding import proceed

        self._tell(lambda callback: callback.on_start(self))
        self.summary = yield from proceed(run.context, run.checkpoint, self._stop, started)
        self._tell(lambda callback: callback.on_end(self))

    def _tell(self, act: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            with blaming():
                act(callback)

    # -- what a program does with it ---------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """End the run cleanly after the round recorded last, with the usual results.

        The summary gives the reason under ``stopped``. Such a run is not finished: ``resume=True`` continues it, to the same
        bytes as a run that was never stopped.
        """
        self._stop.ask(Stopped("call", reason))

    def finish(self) -> dict[str, Any]:
        """Run all remaining rounds and return the summary."""
        for _ in self:
            pass
        assert self.summary is not None
        return self.summary

    @property
    def folder(self) -> str:
        """Path or URL of the run folder; available within the block and after it."""
        if self._open is None:
            raise FedsimError("a Run has no folder before its with block: with fedsim.Run(config) as run: ...")
        return self._open.location

    @property
    def prompt(self) -> str | None:
        """Path or URL of the trained prompt, for :func:`fedsim.load_adapter`; None until the run is finished."""
        return None if self.summary is None else f"{self.folder}/prompt/global.safetensors"


def run(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    load: Sequence[str | Path] = (),
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    progress: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a config and return its summary, the contents of ``summary.json``.

    Parameters
    ----------
    config
        A config, or the path of one.
    overrides
        Overrides such as ``client.optimizer.lr=0.01``; only if ``config`` is a path.
    load
        Plug-ins to load first, if ``config`` is a path; see :func:`fedsim.load_plugin`.
    callbacks, resume, progress, console
        As for :class:`Run`.
    """
    load_files(load)
    if not isinstance(config, Config):
        config = read_config(config, overrides)
    elif overrides:
        raise FedsimError("overrides need the path of a config; to change a Config, use config.replace(rounds=5)")
    with Run(config, callbacks=callbacks, resume=resume, progress=progress, console=console) as going:
        return going.finish()


def _named(config: Config) -> list[Callback]:
    """Create the callbacks that a config names."""
    made = []
    for name in config.callbacks:
        with guarded(f"callback {name!r}", CALLBACKS.origin(name)):
            made.append(CALLBACKS[name].of(config.params.get(name)))
    return made


def _metric_name(config: Config) -> str:
    from fedsim.data.tasks import resolve_task

    return resolve_task(config.data.task).metric
