"""Layer selection on its own: what ``fedsim layers`` does."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from fedsim.config import Config
from fedsim.interrupt import InterruptWatch
from fedsim.preparation import prepare
from fedsim.progress import Progress
from fedsim.runner import make_executor
from fedsim.simulation import LayerChoice, choose, start_workers


def select_layers(config: Config, console: Console) -> LayerChoice:
    """Start workers, let the clients score the layers, and return the choice."""
    with InterruptWatch() as watch, Progress(config.rounds, "score", console) as progress, ExitStack() as stack:
        prepared = prepare(config, progress.start_phase)
        executor = make_executor(config, watch.check, progress.note)
        stack.callback(executor.close)
        workers = start_workers(config, prepared, executor, progress)
        progress.start_phase("scoring layers")
        return choose(config, prepared, executor, workers[0].full)
