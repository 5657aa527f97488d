"""Evaluation of a vector on examples: counts that add up, so that any cut into shards gives the same metric."""

from __future__ import annotations

import numpy as np
import torch

from clients.backbone import Backbone
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import Evaluation
from fedsim.core.tokens import TokenTable


def evaluate(
    backbone: Backbone,
    table: TokenTable,
    indices_N: np.ndarray,
    layout: VectorLayout,
    vector_A: np.ndarray,
    num_classes: int,
    batch_size: int,
) -> Evaluation:
    """Predict the examples ``indices_N`` with the parameters ``vector_A`` of ``layout`` and count.

    Examples are batched by length, so that little padding is computed; the counts do not depend on the order.
    """
    confusion_CC = np.zeros((num_classes, num_classes), dtype=np.int64)
    loss_sum = 0.0
    prompt_LKHPD, head = layout.split(torch.from_numpy(vector_A.copy()).to(backbone.device))
    prompt_1 = prompt_LKHPD.unsqueeze(0)
    head_1 = {name: array.unsqueeze(0) for name, array in head.items()}
    by_length = indices_N[np.argsort(table.lengths_N[indices_N], kind="stable")]
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            batch = table.batch(by_length[start : start + batch_size])
            reading = backbone.forward(batch, prompt_1, layout.layers, head_1)
            predicted_B = reading.logits_BC.argmax(dim=1).cpu().numpy()
            np.add.at(confusion_CC, (batch.labels_B, predicted_B), 1)
            loss_sum += float(reading.loss_B.double().sum())
    return Evaluation(confusion_CC, loss_sum)
