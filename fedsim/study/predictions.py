"""Which validation examples a run gets right, for McNemar's test."""

from __future__ import annotations

import numpy as np

from fedsim.records.recorded_run import load_run
from fedsim.study.figures import CellFigures


def right_examples(cell: CellFigures) -> np.ndarray | None:
    """Return whether the global prompt after the last round is right on each example; None if predictions were not kept.

    Raises
    ------
    ConfigError
        If they were kept, but the run's folder is not there any more.
    """
    if not cell.predictions:
        return None
    table = load_run(cell.folder).predictions
    return table["prediction"].to_numpy() == table["label"].to_numpy()
