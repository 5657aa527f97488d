"""Tables written once, at the end of a run: each client's own result, and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.core.messages import Evaluation
from fedsim.core.shards import Shards
from fedsim.data import metrics
from fedsim.records.columns import PERSONAL_COLUMNS, PREDICTION_COLUMNS
from fedsim.records.run_folder import RunFolder
from fedsim.records.tables import write_table
from fedsim.simulation.final import FinalEvaluations


def write_final_tables(
    folder: RunFolder, final: FinalEvaluations, metric: str, labels_N: np.ndarray, shards: Shards
) -> None:
    """Write ``personal.parquet`` if clients hold out examples, ``predictions.parquet`` if predictions are kept, and the
    last rows of ``generations.parquet``, with their events, if the model wrote.

    Parameters
    ----------
    metric
        Name of the task's metric.
    labels_N
        Classes of the validation examples.
    shards
        Who holds out what.
    """
    if final.clients:
        write_table(folder.personal, PERSONAL_COLUMNS, _personal(final, metric, shards))
    if final.predictions is not None:
        write_table(folder.predictions, PREDICTION_COLUMNS, _predictions(final, labels_N))
    if final.texts is not None:
        folder.generation_records(final.texts.new)
        for round, figures in final.texts.new_figures().items():
            folder.event("generated", round=round, only_at_end=True, **figures)


def _personal(final: FinalEvaluations, metric: str, shards: Shards) -> dict[str, list[Any]]:
    clients = list(final.clients)
    return {
        "client": clients,
        "rounds": [final.rounds[client] for client in clients],
        "examples": [len(shards.holdout(client)) for client in clients],
        **_figures([final.clients[client] for client in clients], metric, ""),
        **_figures([final.clients_start.get(client) for client in clients], metric, "start_"),
    }


def _figures(evaluations: Sequence[Evaluation | None], metric: str, prefix: str) -> dict[str, list[Any]]:
    """Return the columns of some evaluations; null where there is none."""
    return {
        f"{prefix}metric": [each and metrics.compute(metric, each.confusion_CC) for each in evaluations],
        f"{prefix}loss": [each and metrics.loss(each) for each in evaluations],
        f"{prefix}confusion": [each and each.confusion_CC.reshape(-1).tolist() for each in evaluations],
    }


def _predictions(final: FinalEvaluations, labels_N: np.ndarray) -> dict[str, np.ndarray]:
    last, best = final.predictions, final.predictions_best
    assert last is not None
    columns = {
        "example": np.arange(len(labels_N)),
        "label": labels_N,
        "prediction": last.predicted_N,
        "loss": last.loss_N,
    }
    return columns if best is None else columns | {"best_prediction": best.predicted_N, "best_loss": best.loss_N}
