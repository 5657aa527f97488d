"""A run that can be held in the hand: what ``fedsim run`` and :func:`fedsim.run` are made of."""

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

    On entering, data and model are read, and mistakes come to light; the run begins with the first round that is asked for.
    A block that is left before the last round, by whatever way, saves the last round on record: ``resume=True`` goes on from
    there. In the main thread, SIGINT and SIGTERM are answered between rounds while the block lasts, by ``RunInterrupted``;
    a second one ends the process at once.

    Parameters
    ----------
    config
        A config, or the path of one.
    callbacks
        Told of each round before the loop's body is.
    resume
        Go on from the newest checkpoint of ``config.output``, or of the newest run of this name; a run that is finished is
        left as it is, and one that has no checkpoint begins anew.
    progress
        Show rounds and phases; if false, notes only.
    console
        Where to show them; if not given, the notebook that this process serves, else standard output.

    Attributes
    ----------
    config
        The config; once the run has begun, with the number of clients that its data gave.
    summary
        The contents of ``summary.json``, once the run is finished; else None.

    Raises
    ------
    FedsimError
        A mistake in config, data or model, missing resources, or a failing client.
    RunInterrupted
        After SIGINT or SIGTERM; it says what is saved.

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
            raise FedsimError("a Run is for one with block; make another one, with resume=True to go on")
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
        """Let the run end in order after the round that is on record now, with results as after the last one.

        The reason stands in the summary, under ``stopped``. A run that was stopped so is not finished: ``resume=True`` goes
        on with it, to the bytes of a run that was not stopped.
        """
        self._stop.ask(Stopped("call", reason))

    def finish(self) -> dict[str, Any]:
        """Do all rounds that are left, and return the summary."""
        for _ in self:
            pass
        assert self.summary is not None
        return self.summary

    @property
    def folder(self) -> str:
        """Path or URL of the run's folder; known within the block and after it."""
        if self._open is None:
            raise FedsimError("a Run has a folder from its with block on: with fedsim.Run(config) as run: ...")
        return self._open.location

    @property
    def prompt(self) -> str | None:
        """Path or URL of the trained prompt, which :func:`fedsim.load_prompt` reads; None before the run is finished."""
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
        Words such as ``client.optimizer.lr=0.01``, with the path of a config.
    load
        Plug-ins to load first, with the path of a config; see :func:`fedsim.load_plugin`.
    callbacks, resume, progress, console
        As for :class:`Run`.
    """
    load_files(load)
    if not isinstance(config, Config):
        config = read_config(config, overrides)
    elif overrides:
        raise FedsimError("overrides go with the path of a config; for a Config use config.replace(rounds=5)")
    with Run(config, callbacks=callbacks, resume=resume, progress=progress, console=console) as going:
        return going.finish()


def _named(config: Config) -> list[Callback]:
    """Make the callbacks that a config names."""
    made = []
    for name in config.callbacks:
        with guarded(f"callback {name!r}", CALLBACKS.origin(name)):
            made.append(CALLBACKS[name].of(config.params.get(name)))
    return made


def _metric_name(config: Config) -> str:
    from fedsim.data.tasks import resolve_task

    return resolve_task(config.data.task).metric
