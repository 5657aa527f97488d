"""Work for the tiny models: a table of random texts of unequal lengths, and clients to train."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tiny_models import LABEL_WORDS, VOCABULARY

from clients.backbone.model import Backbone
from clients.config import ClientConfig
from clients.training.local_job import LocalJob, Parts, TrainingResult
from clients.training.local_training import train_clients
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenTable


def token_table(num_examples: int, longest: int = 20, seed: int = 0) -> TokenTable:
    """Return a table of texts of 3 to ``longest`` tokens, read at the last."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, num_examples)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(3, VOCABULARY, offsets[-1]).astype(np.int32)
    labels = rng.integers(0, len(LABEL_WORDS), num_examples)
    return TokenTable(ids, offsets, (lengths - 1).astype(np.int32), labels, pad_id=1)


def parts_of(model: Backbone, layers: Sequence[int] = (0, 2)) -> Parts:
    return Parts.of(VectorLayout.full(model.geometry, model.head_shapes), tuple(layers), keep_local=False)


def jobs_of(parts: Parts, sizes: Sequence[int], seed: int = 0) -> list[LocalJob]:
    """Return clients that hold ``sizes`` examples, one after another in the table, and start from points of their own."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(sizes)
    return [
        LocalJob(client, np.arange(end - size, end), rng.normal(0.0, 0.3, parts.trained.size).astype(np.float32))
        for client, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def train(
    model: Backbone, table: TokenTable, parts: Parts, jobs: Sequence[LocalJob], max_tokens=None, **client: object
) -> list[TrainingResult]:
    """Train the clients once, with mini-batches of three unless ``client`` overrides it."""
    config = ClientConfig.model_validate({"epochs": 2, "batch_size": 3, **client})
    return train_clients(model, table, jobs, parts, config, seed=0, round=0, max_tokens=max_tokens)
