"""02_layer_score: layer scores of prescribed hidden states."""

from __future__ import annotations

import numpy as np
from reference.scores import descending, layer_scores

LAYERS, TOKENS, HIDDEN = 4, 2, 6
CASES = (
    ("b8_f32", 8, "plain", "float32"),
    ("b8_f64", 8, "plain", "float64"),
    ("b8_f16", 8, "plain", "float16"),
    ("b8_similar_f32", 8, "similar", "float32"),
    ("b8_similar_f64", 8, "similar", "float64"),
    ("b1_f32", 1, "plain", "float32"),
    ("b2_f32", 2, "plain", "float32"),
    ("b6_duplicates_f32", 6, "duplicates", "float32"),
    ("b6_duplicates_f64", 6, "duplicates", "float64"),
    ("b4_zero_row_f32", 4, "zero_row", "float32"),
    ("b4_opposite_f32", 4, "opposite", "float32"),
)
CONSENSUS = ((6, 2, 31), (3, 3, 12), (4, 2, 55), (1, 2, 2))
"""Batch, tokens and number of training examples of each client."""


def traces(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    """Return the arrays and the description."""
    arrays: dict[str, np.ndarray] = {}
    cases = {}
    for name, batch, kind, cast_to in CASES:
        hidden = _hidden(rng, batch, TOKENS, kind)
        scores = layer_scores(hidden.astype(cast_to))
        arrays |= {f"{name}.hidden": hidden, f"{name}.score": scores, f"{name}.rank": descending(scores)}
        cases[name] = {"batch": batch, "tokens": TOKENS, "hidden": HIDDEN, "kind": kind, "cast_to": cast_to}
    weights = np.array([examples for *_, examples in CONSENSUS])
    total = np.zeros(LAYERS)
    for client, (batch, tokens, examples) in enumerate(CONSENSUS):
        hidden = _hidden(rng, batch, tokens, "plain")
        scores = layer_scores(hidden)
        arrays |= {f"consensus.hidden{client}": hidden, f"consensus.client_score{client}": scores}
        total += examples / weights.sum() * scores
    arrays |= {"consensus.n_samples": weights, "consensus.score": total, "consensus.rank": descending(total)}
    description = {
        "what": "layer scores of prescribed hidden states",
        "cases": cases,
        "formula": "per layer: K = cosine similarities of the flattened rows, e = eigenvalues(K) + 1e-5, "
        "score = sum(log(e) + 1/e); the last layer is never scored",
        "tolerance": "1e-4 relative; 3 % where an eigenvalue is 0 up to rounding (duplicates, zero row, opposite rows)",
    }
    return {"02_layer_score": (arrays, description)}


def _hidden(rng: np.random.Generator, batch: int, tokens: int, kind: str) -> np.ndarray:
    """Return float32 hidden states [L + 1, batch, tokens, hidden]; rows resemble each other more in some layers."""
    shape = (LAYERS + 1, batch, tokens, HIDDEN)
    likeness = rng.permutation(np.linspace(0.3, 1.5, LAYERS + 1))[:, None, None, None]
    if kind == "similar":
        likeness = likeness + 3.0
    hidden = rng.normal(size=shape) + likeness * rng.normal(size=(LAYERS + 1, 1, tokens, HIDDEN))
    if kind == "duplicates":
        hidden[:, 1] = hidden[:, 0]
    if kind == "zero_row":
        hidden[:, 1] = 0.0
    if kind == "opposite":
        hidden[:, 1] = -hidden[:, 0]
    return hidden.astype(np.float32)
