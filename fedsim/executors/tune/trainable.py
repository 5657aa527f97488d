"""A run as a Tune trial: reports its rounds, checkpoints its folder, and goes on from it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ConfigError
from fedsim.core.plugin_source import Plugin
from fedsim.core.plugins import load_source, loaded
from fedsim.executors.tune.resources import as_config, imported_tune, num_actors, resources

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config
    from fedsim.records.round_record import RoundRecord

_OF_THE_TRIAL = ("executor", "output", "ray")
"""Keys that decide what a trial reserves, or where it writes: the same for all trials."""


def trainable(config: Config | str | Path) -> Callable[[dict[str, Any]], None]:
    """Return a function trainable for ``ray.tune.Tuner``: a run of the config, changed by what Tune draws.

    A trial reports each evaluated round: ``round``, ``global_metric``, ``loss`` (on the validation examples), and ``bytes``
    and ``seconds`` since its last report. Each report has a checkpoint, the run's folder, from which Tune restores a trial
    to the same bytes as one that was never stopped; that of the last report is the folder of a finished run. The function
    asks for what :func:`fedsim.tune.resources` returns.

    Parameters
    ----------
    config
        A config, or the path of one; keys of ``param_space`` are its keys, dotted or nested.

    Raises
    ------
    FedsimError
        If Tune is not installed, or the config is mistaken. A trial whose values are mistaken ends with the sentence.

    Examples
    --------
    >>> from ray import tune                                                                    # doctest: +SKIP
    >>> space = {"server.lr": tune.loguniform(0.01, 1.0), "prompt.length": tune.choice([5, 20])}  # doctest: +SKIP
    >>> tune.Tuner(fedsim.tune.trainable("configs/quickstart.yaml"), param_space=space).fit()   # doctest: +SKIP
    """
    config = as_config(config)
    base = _Base(config.model_dump(mode="json", exclude_unset=True), loaded(), str(Path.cwd()))

    def fedsim_trial(params: dict[str, Any]) -> None:
        base.trial(params)

    made: Callable[[dict[str, Any]], None] = imported_tune().with_resources(fedsim_trial, resources(config))
    return made


@dataclass(frozen=True)
class _Base:
    """What all trials start from, as it travels to their processes."""

    values: dict[str, Any]
    plugins: tuple[Plugin, ...]
    folder: str
    """Folder of the driver, from which relative paths of the config count."""

    def trial(self, params: Mapping[str, Any]) -> None:
        """Do a trial, or what is left of it, in this process; its actors, if any, are in its placement group."""
        for plugin in self.plugins:
            load_source(plugin)
        config = trial_config(self.values, params)
        with _elsewhere(self.folder), tempfile.TemporaryDirectory(prefix="fedsim-trial-") as scratch:
            run_folder = Path(scratch) / "run"
            _restored(run_folder)
            _run(config.replace(output=str(run_folder)), run_folder)


def trial_config(values: Mapping[str, Any], params: Mapping[str, Any]) -> Config:
    """Return the config of a trial.

    Parameters
    ----------
    values
        The base config, nested.
    params
        What Tune has drawn: keys are dotted or nested.

    Raises
    ------
    ConfigError
        On a mistaken key or value.
    """
    from fedsim.configuration.schema import build_config
    from fedsim.configuration.values import leaves, merged, plain

    changed = dict(values)
    for path, value in leaves(plain(params)):
        keys = ".".join(path).split(".")
        if keys[0] in _OF_THE_TRIAL:
            raise ConfigError(f"param_space: {'.'.join(keys)} is the same for all trials; give it in the config")
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        changed = merged(changed, nested)
    return _in_trial(build_config(changed, lambda key: "param_space"))


def _in_trial(config: Config) -> Config:
    """Return the config with the executor that a trial has: its own process, or actors in its placement group."""
    actors = num_actors(config)
    if actors is None:
        alone = {"executor": "local"}
        if config.model.device == "auto" and not config.ray.num_gpus_per_actor:
            return config.replace(**alone, model={"device": "cpu"})  # a process without a GPU may see those of others
        return config.replace(**alone)
    own = dict.fromkeys(("num_cpus", "num_gpus", "object_store_mb"))
    return config.replace(ray={**own, "address": "auto", "placement": "auto"})


@contextmanager
def _elsewhere(folder: str) -> Iterator[None]:
    """Work in the driver's folder, if this machine has it: Tune gives each trial another one."""
    before = Path.cwd()
    if Path(folder).is_dir():
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _restored(run_folder: Path) -> None:
    checkpoint = imported_tune().get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            shutil.copytree(folder, run_folder)


def _run(config: Config, run_folder: Path) -> None:
    """Run the remaining rounds and report them; the last one once its results are in the folder."""
    from clients.actor import gpu_share
    from fedsim.simulation.run import Run

    if config.executor == "local" and (share := gpu_share()) > 0:
        _keep_to(share)
    reports = _Reports(run_folder)
    with Run(config, resume=True, progress=False) as run:
        for done in run:
            reports.add(done)
            if done.round < config.rounds:
                reports.send()
        summary = run.summary
    assert summary is not None
    reports.end(summary)


def _keep_to(share: float) -> None:
    import torch

    from clients.backbone.device import limit_memory

    if torch.cuda.is_available():
        limit_memory(share, torch.device("cuda"))


class _Reports:
    """What a trial tells Tune."""

    def __init__(self, run_folder: Path) -> None:
        self._tune = imported_tune()
        self._run_folder = run_folder
        self._bytes, self._seconds = 0, 0.0
        self._last: dict[str, Any] = {}

    def add(self, done: RoundRecord) -> None:
        """Add a round."""
        self._bytes += done.bytes_up + done.bytes_down
        self._seconds += done.seconds_round
        self._last = {"round": done.round, "global_metric": done.global_metric, "loss": done.global_loss}

    def send(self) -> None:
        """Report the rounds since the last report, if the last of them was evaluated: schedulers need the metric."""
        if self._last["global_metric"] is None:
            return
        metrics = {**self._last, "bytes": self._bytes, "seconds": self._seconds}
        self._bytes, self._seconds = 0, 0.0
        self._tune.report(metrics, checkpoint=self._tune.Checkpoint.from_directory(str(self._run_folder)))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Report the finished run: its last round, whose results are in the folder now."""
        self._last |= {"round": summary["rounds"], "global_metric": summary["global_metric"]}
        self.send()
