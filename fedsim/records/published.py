"""Time as measured by the published study: a round takes as long as its longest local training; see docs/method.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.records.tables import read_columns


def seconds_to_target(folder: str | Path, target: float, *, personalised: bool = False) -> float | None:
    """Return the published time until a run first reaches a target in an evaluated round; None if it never does.

    Parameters
    ----------
    folder
        The run's folder.
    target
        Metric to reach, for example 0.95.
    personalised
        Use the personalised metric, evaluated every ``evaluation.personalised_every`` rounds, instead of the
        global one.

    Raises
    ------
    CheckpointError
        If the folder has no records of rounds.
    """
    rounds = read_columns(Path(folder) / "rounds.parquet")
    order = np.argsort(rounds["round"], kind="stable")
    metric = rounds["personalised_metric" if personalised else "global_metric"][order].astype(np.float64)
    seconds = np.nancumsum(rounds["seconds_longest_client"][order].astype(np.float64))
    reached = np.flatnonzero(metric >= target)
    return float(seconds[reached[0]]) if len(reached) else None
