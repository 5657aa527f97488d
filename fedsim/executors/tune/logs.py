"""Logs of a search, kept whole where a trial starts again; reached by :func:`fedsim.tune.callbacks`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.tune import Callback
from ray.tune.result import EXPR_RESULT_FILE


class WholeLogs(Callback):
    """Brings a trial's log in storage up to date before the trial starts again.

    Tune's logger then replaces its own log by the copy in storage, which is ten seconds old or more, and rows reported since
    would be missing from ``metrics_dataframe`` (``findings/ray_tune_restart_drops_rows.sh``).
    """

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Look after the log of a trial that has failed and will be tried again."""
        _bring_up_to_date(trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Look after the log of one that was paused; Tune's own loggers come later, unless they are given by name."""
        _bring_up_to_date(trial)


def _bring_up_to_date(trial: Any) -> None:
    """Copy a log that is longer here than in storage: of a search that is restored elsewhere, storage has the longer one."""
    storage = trial.storage.storage_filesystem
    here, there = Path(trial.local_path, EXPR_RESULT_FILE), Path(trial.path, EXPR_RESULT_FILE).as_posix()
    try:
        if here.is_file() and here.stat().st_size > (storage.get_file_info(there).size or 0):
            storage.create_dir(trial.path)
            pyarrow.fs.copy_files(str(here), there, destination_filesystem=storage)
    except OSError as error:  # the search goes on, as it does where Tune's own copies fail
        logging.getLogger(__name__).warning("rows of %s may be missing: %s cannot be written: %s", trial, there, error)
