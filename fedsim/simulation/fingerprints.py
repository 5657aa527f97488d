"""Fingerprints of what a run's results depend on besides its config: weights, tokens, partition."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.tokens import TokenTable

if TYPE_CHECKING:
    from clients.spec import WorkerSpec

_OF_NO_MATTER = ("transformers_version", "architectures", "dtype", "torch_dtype")
"""Keys of a model's config.json that describe only how it was saved."""


def contents_of(spec: WorkerSpec) -> dict[str, str]:
    """Return the SHA-256 of each part of a specification that results depend on, by the names of ``Prepared.contents``."""
    shards, values = spec.shards, json.loads(spec.weights.config_json)
    described = {key: value for key, value in values.items() if key not in _OF_NO_MATTER}
    contents = {
        "weights": spec.weights.fingerprint(),
        "model_config": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        "training_data": _table_hash(spec.train),
        "validation_data": _table_hash(spec.validation),
        "partition": _hash(shards.indices_N, shards.offsets_C1, shards.train_stops_C),
    }
    words = spec.train.words
    if words is not None:
        contents["label_words"] = _hash(words.ids_Q, words.lengths_W, words.classes_W)
    elif spec.label_word_ids_C is not None:
        contents["label_words"] = _hash(spec.label_word_ids_C)
    if spec.empty is not None:
        contents["empty_text"] = _table_hash(spec.empty)
    if spec.tuner.constants:
        contents["constants"] = _hash(*spec.tuner.constants.values())
    if spec.start is not None:
        contents["start"] = spec.start.fingerprint()
    return contents


def _table_hash(table: TokenTable) -> str:
    optional = (a for a in (table.type_ids_Z, table.response_starts_N, table.learned_Z) if a is not None)
    return _hash(table.ids_Z, table.offsets_N1, table.read_positions_N, table.labels_N, *optional)


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
