"""Evaluation of vectors on examples: additive counts, so any split into shards gives the same metric.

Of responses the tokens are counted, as of two classes: a token is the most likely one where it stands (1) or not (0), and every
one of them should be. Losses are summed over tokens, so that their mean is that of transformers, and its exponential the
perplexity.

Shape suffixes: C vectors (clients), or classes in ``confusion_CC``; A parameters of a vector; N examples, B those of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit, run_passes
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import Evaluation
from fedsim.core.predictions import Predictions
from fedsim.core.tokens import TokenTable, rows


def evaluate(
    backbone: Backbone,
    table: TokenTable,
    indices_N: Sequence[np.ndarray],
    layout: VectorLayout,
    vector_CA: np.ndarray,
    num_classes: int,
    batch_size: int,
    cached: Tensor | None = None,
    *,
    keep_predictions: bool = False,
) -> list[Evaluation]:
    """Predict examples with the parameters of ``layout`` and count the outcomes.

    Parameters
    ----------
    indices_N
        The examples of each vector.
    vector_CA
        One vector per row; all share the passes through the backbone.
    batch_size
        Examples per pass, or texts where each label word of an example has its own. Examples are sorted by length across
        vectors; the counts do not depend on the order.
    cached
        Input of the lowest prompted layer [tokens, hidden] for all examples, those of the first vector first; or None.
    keep_predictions
        Return the predictions as well, each vector's in the order of its examples.

    Returns
    -------
    list
        Counts of each vector; the first one also has the number of passes split for lack of memory.

    Raises
    ------
    ResourceError
        If a single example does not fit in the device's memory.
    """
    count = len(vector_CA)
    all_N = np.concatenate(indices_N)
    owners_N = np.repeat(np.arange(count), [len(own) for own in indices_N])
    lengths_N = table.lengths_N[all_N]
    kept_N = backbone.cached_rows(lengths_N)
    starts_N = np.cumsum(kept_N) - kept_N
    order_N = np.argsort(lengths_N, kind="stable")
    tuned_CLX, head_C = layout.split_rows(to_device(vector_CA.copy(), backbone.device))
    # Filled on the device and copied once: each copy from a GPU waits for all of its queued work.
    predicted_N = torch.empty(len(order_N), dtype=torch.int64, device=backbone.device)
    loss_N = torch.empty(len(order_N), dtype=torch.float64, device=backbone.device)

    def predict(examples: slice) -> None:
        chosen_B = order_N[examples]
        tokens, owners_B = table.pack(all_N[chosen_B]), owners_N[chosen_B]
        entering = None
        if cached is not None:
            entering = cached[to_device(rows(starts_N[chosen_B], kept_N[chosen_B]), cached.device)]
        reading = backbone.predict(tokens, tuned_CLX, layout.layers, head_C, owners_B, entering)
        predicted_N[examples] = reading.logits_BC.argmax(dim=1) if reading.hits_B is None else reading.hits_B
        loss_N[examples] = reading.loss_B.double()

    limit, size = PassLimit(), len(order_N)
    batch_size = max(batch_size // backbone.texts_of_example, 1)
    pieces = [slice(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
    with torch.inference_mode():
        # The longest come first, so that all later passes find room in what they leave.
        run_passes(lengths_N[order_N], pieces[::-1], limit, predict)
    confusion_CCC = np.zeros((count, num_classes, num_classes), dtype=np.int64)
    loss_C = np.zeros(count)
    sorted_N, found_N, lost_N = owners_N[order_N], predicted_N.cpu().numpy(), loss_N.cpu().numpy()
    tokens_N = table.responses_N[all_N[order_N]]
    if table.response_starts_N is None:
        np.add.at(confusion_CCC, (sorted_N, table.labels_N[all_N[order_N]], found_N), 1)
    else:
        np.add.at(confusion_CCC[:, 1, 1], sorted_N, found_N)
        np.add.at(confusion_CCC[:, 1, 0], sorted_N, tokens_N - found_N)
        found_N = (found_N == tokens_N).astype(np.int64)
    np.add.at(loss_C, sorted_N, lost_N * tokens_N)
    splits_C = [limit.splits, *[0] * (count - 1)]
    kept_C: list[Predictions | None] = [None] * count
    if keep_predictions:
        back_N = np.argsort(order_N)  # from the order of lengths to that of the examples
        kept_C = [Predictions(found_N[own], lost_N[own]) for own in _split(back_N, indices_N)]
    return [Evaluation(*counts) for counts in zip(confusion_CCC, loss_C.tolist(), splits_C, kept_C, strict=True)]


def _split(array_N: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return consecutive pieces of an array, as long as the parts are."""
    return np.split(array_N, np.cumsum([len(part) for part in parts])[:-1])
