"""Time as measured by the published study: a round takes as long as its longest local training; see docs/method.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.records.tables import read_columns


def seconds_so_far(longest_R: np.ndarray) -> np.ndarray:
    """Return the published time from the start of a run to the end of each round.

    Parameters
    ----------
    longest_R
        ``seconds_longest_client`` by round; NaN for the evaluation before any training, which takes no published time.
    """
    seconds_R: np.ndarray = np.nancumsum(np.asarray(longest_R, dtype=np.float64))
    return seconds_R


def first_reaching(metric_R: np.ndarray, target: float) -> int | None:
    """Return the index of the first round whose metric reaches a target, None without; NaN reaches none."""
    reached = np.flatnonzero(metric_R >= target)
    return int(reached[0]) if len(reached) else None


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
    first = first_reaching(metric, target)
    return None if first is None else float(seconds_so_far(rounds["seconds_longest_client"][order])[first])
